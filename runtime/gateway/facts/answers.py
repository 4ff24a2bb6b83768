"""Pure: what a server answered to questions about itself, read without trusting its shape. Nothing here raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.gateway.facts.known import Facts

LARGEST_COUNT = 1 << 62
"""A number above this is nonsense, whatever it counts."""
MOST_ROWS = 2000
"""Of a list that are looked at; every one costs time on the event loop."""
LONGEST_TEXT = 200
"""Characters of a name or label; more is nonsense, and would be shown to clients."""


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


def fields(value: object) -> Mapping[str, object]:
    """Return a JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Mapping[str, object]]:
    """Return the JSON objects of a list, or of one that should have been a list, `MOST_ROWS` of them at most."""
    if isinstance(value, dict):
        return [value]
    return [row for row in value[:MOST_ROWS] if isinstance(row, dict)] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """Return a printable text that says something."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        return None
    return value.strip() or None


def count(value: object) -> int | None:
    """Return a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < LARGEST_COUNT else None


def flag(value: object) -> bool | None:
    """Return a truth value."""
    return value if isinstance(value, bool) else None


def texts(value: object) -> frozenset[str]:
    """Return the texts of a list."""
    listed = value[:MOST_ROWS] if isinstance(value, list) else []
    return frozenset(found for each in listed if (found := text(each)))


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
