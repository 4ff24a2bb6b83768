"""Pure: what a translation is: another protocol's client on one side, the gateway's OpenAI requests on the other.

A protocol's request function returns a `Body` in OpenAI's words and a `Translation` for what comes back. Everything
between the two (routes, breakers, lines, receipts) does not know of it.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from runtime.gateway.bodies import Body, body_of


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
        """Translate whole events of OpenAI's stream; returns bytes for the client, maybe none.

        Comments come before the first content only; an error becomes the protocol's own error event, and nothing
        follows it. Raises `attempt.BadAnswerError`, or what `attempt.ODD_ANSWER` names.
        """
        ...


def openai_body(document: dict[str, Any], *, is_stream: bool) -> Body:
    """Return a request in OpenAI's words; a stream says its usage at the end.

    Raises `ApiError` with status 400 for a parameter of a wrong type, under OpenAI's name for it: what a protocol calls
    otherwise it checks itself.
    """
    if is_stream:
        document = {**document, "stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return body_of(raw, document)
