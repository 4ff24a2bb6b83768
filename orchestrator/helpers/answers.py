"""Pure: what a helper answered to a few questions, read without trusting its shape. Nothing here raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.observed import HelperSeen
from schemas.foreign import count, fields, rows, text

OPENAI_MODELS = "/v1/models"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a GET."""

    status: int
    document: object = None
    """Its body, parsed; None where that is no JSON."""
    server: str = ""
    """Its `Server` header."""


Answers = Mapping[str, Answer]
"""Answers by the path that was asked; a path that was not asked, or not answered, is not there."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one inference server is recognised and read."""

    engine: str
    clues: tuple[str, ...]
    """The paths that tell whether it is this one."""
    details: tuple[str, ...]
    """The paths that tell more of it."""
    is_spoken: Callable[[Answers], bool]
    read: Callable[[Answers], HelperSeen]


def said(answers: Answers, path: str) -> Mapping[str, object]:
    """Return the JSON object that a path answered with 200, or an empty one."""
    answer = answers.get(path)
    return fields(answer.document) if answer is not None and answer.status == 200 else {}


def openai_models(answers: Answers, path: str = OPENAI_MODELS) -> list[Mapping[str, object]]:
    """Return the rows of a model list of OpenAI's shape."""
    return rows(said(answers, path).get("data"))


def owners(answers: Answers, path: str = OPENAI_MODELS) -> set[str]:
    """Return whom a model list names as the owners of its models."""
    return {owner for row in openai_models(answers, path) if (owner := text(row.get("owned_by")))}


def names(listed: Sequence[Mapping[str, object]], key: str = "id") -> frozenset[str]:
    """Return the names in the rows of a list."""
    return frozenset(name for row in listed if (name := text(row.get(key))))


def numbers(listed: Sequence[Mapping[str, object]], name: str, *keys: str) -> dict[str, int]:
    """Return a number of each named row: the first of `keys` that it has."""
    found = {}
    for row in listed:
        called = text(row.get(name))
        values = [value for key in keys if (value := count(row.get(key)))]
        if called and values:
            found[called] = values[0]
    return found
