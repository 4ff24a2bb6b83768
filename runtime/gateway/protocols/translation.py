"""Pure: what a translation is: another protocol's client on one side, the gateway's OpenAI requests on the other.

A protocol's request function returns a `Body` in OpenAI's words and a `Translation` for what comes back. Everything
between the two (routes, breakers, lines, receipts) does not know of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from runtime.gateway import sse
from runtime.gateway.bodies import Body, body_of

KEEP_ALIVE: Literal["keep-alive"] = "keep-alive"
"""A comment: the client waits, and somebody is there."""
DONE: Literal["done"] = "done"
"""`[DONE]`: the answer is complete; always the last one where nothing went wrong."""

Event = Mapping[str, Any] | sse.StreamError | Literal["keep-alive", "done"]
"""One event of an OpenAI stream: a chunk, an error (the last one then), a comment, or the end."""

_DATA = b"data: "


class Translation(Protocol):
    """How the answer to one request is said in another protocol. Used for one request, and for one answer to it."""

    @property
    def content_type(self) -> str:
        """The content type of a stream."""
        ...

    def whole(self, raw: bytes, /) -> bytes:
        """Translate OpenAI's document, an answer with status 200; raises `attempt.BadAnswerError`."""
        ...

    def feed(self, events: bytes, /) -> bytes:
        """Translate whole events of OpenAI's stream (`read_events`); returns bytes for the client, maybe none.

        Comments come before the first content only; an error becomes the protocol's own error event, and nothing
        follows it. Raises `attempt.BadAnswerError`, or what `attempt.ODD_ANSWER` names.
        """
        ...


def read_events(events: bytes) -> Iterator[Event]:
    """Yield what whole server-sent events say; those that are no JSON object are left out."""
    for event in sse.split_events(events):
        plain = event.startswith(_DATA) and event.endswith(b"\n\n") and b"\n" not in event[:-2] and b"\r" not in event
        data = event[len(_DATA) : -2] if plain else sse.event_data(event)
        if not data:
            if event.startswith(b":"):
                yield KEEP_ALIVE
            continue
        if data.strip() == sse.DONE_MARK:
            yield DONE
            continue
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if not isinstance(document, dict):
            continue
        if document.get("error"):
            sign = sse.read_event(event)
            if isinstance(sign, sse.StreamError):
                yield sign
                continue
        yield document


def openai_body(document: dict[str, Any], *, is_stream: bool) -> Body:
    """Return a request in OpenAI's words; a stream says its usage at the end.

    Raises `ApiError` with status 400 for a parameter of a wrong type, under OpenAI's name for it: what a protocol calls
    otherwise it checks itself.
    """
    if is_stream:
        document = {**document, "stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return body_of(raw, document)
