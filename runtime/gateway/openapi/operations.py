"""Pure: how one operation of the HTTP surface is described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
PLAIN = "text/plain"
PAGE = "text/html"
CSV = "text/csv"

Schema = Mapping[str, Any]

ANY = ("400", "403", "408", "413", "421", "500")
"""Errors that every path may answer with."""
SCOPED = ("401", "503")
"""Those of paths that ask for a key."""
RELAYED = ("404", "429", "4XX", "5XX")
"""Those of paths that models answer."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path, query or header."""

    name: str
    where: str
    """`path`, `query` or `header`."""
    schema: Schema
    description: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error."""

    description: str
    whole: type[BaseModel] | None = None
    """The JSON document; None where the answer is no JSON."""
    stream: str = ""
    """The content type of an answer that comes in events; empty where none does."""
    event: type[BaseModel] | None = None
    """What the JSON documents of these events are."""
    has_mark: bool = False
    """Whether `[DONE]` is the last event."""
    texts: tuple[str, ...] = ()
    """The content types of answers that are text for people, or for other programs."""
    is_relayed: bool = False
    """Whether it names the endpoint that has answered."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """As the router knows it."""
    summary: str
    answers: Mapping[str, Answer]
    """By status."""
    tag: str = "Operations"
    description: str = ""
    body: type[BaseModel] | None = None
    example: Mapping[str, Any] | None = None
    """A body that works."""
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[str, ...] = ()
    """Statuses of errors beyond those that every such path has."""


PREFER = Parameter(
    "prefer",
    "header",
    {"type": "string"},
    "`wait=SECONDS`: how long to wait for a model that has to be brought into memory, 600 at most (RFC 7240).",
)
REQUEST_ID = Parameter(
    "x-request-id",
    "header",
    {"type": "string"},
    "A name for the request, of letters, digits and `._:-`; anything else is passed over and one is made.",
)


def relayed(
    path: str,
    summary: str,
    body: type[BaseModel],
    answer: Answer,
    *,
    tag: str,
    example: Mapping[str, Any],
    description: str = "",
) -> Operation:
    """Return the operation of a path that models answer."""
    return Operation(
        "POST",
        path,
        summary,
        {"200": answer},
        tag=tag,
        description=description,
        body=body,
        example=example,
        parameters=(PREFER, REQUEST_ID),
        errors=RELAYED,
    )
