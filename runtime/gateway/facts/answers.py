"""Pure: what a server answered to questions about itself, read without trusting its shape. Nothing here raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.gateway.facts.known import Facts
from schemas.foreign import fields, text


class Question(NamedTuple):
    """A GET, or a POST where there is a body. It never loads a model."""

    path: str
    body: str = ""
    """JSON."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question."""

    status: int
    document: object = None
    """Its body, parsed; None where that is no JSON."""
    indexes: dict[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict, compare=False, repr=False)
    """Rows of the document by their names, as readers have put them in order."""


Answers = Mapping[Question, Answer]
"""A question that was not asked, or not answered, is not there."""


def is_loading(answer: Answer) -> bool:
    """Tell whether a server says that it loads its model, as llama.cpp does."""
    error = fields(fields(answer.document).get("error"))
    return answer.status == 503 and "loading" in (text(error.get("message")) or "").lower()


def says_loading(answers: Answers) -> bool:
    """Tell whether any answer says so."""
    return any(map(is_loading, answers.values()))


@dataclass(frozen=True, slots=True)
class Reader:
    """How one kind of server is asked and read."""

    first: tuple[Question, ...]
    more: Callable[[Answers, frozenset[str]], tuple[Question, ...]]
    """What to ask besides, by the answers to `first` and the names of the models that we use there."""
    read: Callable[[Answers, str], Facts | None]
    """What is said of the model of this name; None where nothing is."""
    stamp: Callable[[Answers, Question], str | None] = lambda _answers, _question: None
    """What tells the present answer to a question from another one; None where only asking tells."""
    is_changing: Callable[[Answers], bool] = says_loading
    """Whether the server was loading when it answered, so that its answers may be of different states of it."""


def nothing_more(_answers: Answers, _models: frozenset[str]) -> tuple[Question, ...]:
    """Ask nothing else."""
    return ()


def is_good(answer: Answer) -> bool:
    """Tell whether a question was answered properly."""
    return answer.status == 200 and isinstance(answer.document, dict)


def said(answers: Answers, question: Question) -> Mapping[str, object]:
    """Return the JSON object that a question was answered with, with status 200, or an empty one."""
    answer = answers.get(question)
    return fields(answer.document) if answer is not None and answer.status == 200 else {}


def row_of(listed: list[Mapping[str, object]], name: str, *keys: str) -> Mapping[str, object]:
    """Return the row that has a name under one of `keys`, or an empty one."""
    return next((row for row in listed if any(row.get(key) == name for key in keys)), {})


def size_in_words(parameters: int | None) -> str | None:
    """Return a number of parameters as people write it: `134.5M`, `8.0B`."""
    if parameters is None:
        return None
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters)
