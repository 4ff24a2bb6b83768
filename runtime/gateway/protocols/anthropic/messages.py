"""Pure: the answer to `POST /v1/messages`: a message as a whole, or the events of one.

A stream is `message_start`, then for each block of content `content_block_start`, its deltas and `content_block_stop`,
then `message_delta` with the stop reason and the usage, and `message_stop`; an error is the last event. Each is a pair
of `event:` and `data:` lines (anthropic-sdk-python 0.121, `types/raw_*_event.py`, `_streaming.py` and
`tests/lib/streaming/fixtures`). Blocks never overlap, although their events carry an index: clients that do not look
at it are right with Anthropic's own streams.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.gateway import sse
from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.protocols.anthropic.answer import (
    SIGNATURE,
    call_id,
    matched_stop,
    message_of,
    reasoning_of,
    stop_of,
    usage_of,
)
from runtime.gateway.protocols.anthropic.request import Wanted
from runtime.gateway.protocols.reading import DONE, KEEP_ALIVE, Reader, Texts
from runtime.gateway.usage import prompt_tokens

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
HIDDEN_DELTAS = 16
"""Thinking that is not shown must not look like a stream that has died: after so many pieces of it there is a ping."""

_ERROR_TYPES = frozenset(
    {
        *("invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error"),
        *("rate_limit_error", "timeout_error", "api_error", "overloaded_error"),
    }
)
"""`types/shared/error_object.py`."""
_quoted = json.JSONEncoder(ensure_ascii=False).encode
_OVERLOADED = frozenset({"no_endpoint_available", "queue_full", "model_cold", "model_failed"})
"""Codes of errors that say: come back later."""


@dataclass(slots=True)
class _Call:
    """A call of a tool that comes in pieces."""

    number: int
    id: str = ""
    name: str = ""
    held: str = ""
    """Arguments that came before its name."""
    is_begun: bool = False


@dataclass(slots=True)
class MessageTranslation:
    """Says one answer of OpenAI's as Anthropic's message."""

    wanted: Wanted
    message_id: str
    _reader: Reader = field(default_factory=Reader)
    _is_begun: bool = False
    _is_over: bool = False
    _index: int = -1
    """Of the block that was begun last."""
    _open: str = ""
    """The type of the block that is open; empty while none is."""
    _before: str = ""
    """What stands before the text in a delta of the open block."""
    _calls: dict[int, _Call] = field(default_factory=dict)
    """By OpenAI's index; one whose index was used again is no longer here."""
    _call: _Call | None = None
    """The one whose block was opened last."""
    _called: int = 0
    _hidden: int = 0
    _finish: object = None
    _matched: object = None
    _is_refused: bool = False
    _usage: Mapping[str, Any] | None = None

    @property
    def content_type(self) -> str:
        """Return the content type of a stream, as Anthropic's API sends it."""
        return "text/event-stream; charset=utf-8"

    def whole(self, raw: bytes) -> bytes:
        """Return the message for OpenAI's document; raises `BadAnswerError`."""
        return message_of(raw, self.wanted, self.message_id)

    def feed(self, events: bytes) -> bytes:
        """Return the events for whole events of OpenAI's; raises `BadAnswerError` for a call that makes no sense."""
        said: list[bytes] = []
        for event in self._reader.read(events):
            if self._is_over:
                break
            if isinstance(event, sse.StreamError):
                self._is_over = True
                said.append(_error(event))
                break
            if not self._is_begun:
                self._is_begun = True
                said.append(self._start())
            if isinstance(event, Texts):
                said.append(self._thinking(event.texts) if event.is_thinking else self._text(event.texts))
            elif event == KEEP_ALIVE:
                said.append(PING)
            elif event == DONE:
                self._is_over = True
                said.append(self._stop())
            elif isinstance(event, Mapping):
                said.append(self._chunk(event))
        return b"".join(said)

    def _start(self) -> bytes:
        # How many tokens the prompt has is known at the end only: `message_delta` says it then, for all of them.
        usage = {"input_tokens": prompt_tokens(self.wanted.body.document), "output_tokens": 0}
        message: dict[str, Any] = {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.wanted.body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return _event("message_start", {"message": message})

    def _stop(self) -> bytes:
        stop = stop_of(
            self._finish,
            self._matched,
            self.wanted.stops,
            has_calls=self._called > 0,
            is_refused=self._is_refused,
        )
        delta = {"stop_reason": stop.reason, "stop_sequence": stop.sequence}
        end = _event("message_delta", {"delta": delta, "usage": usage_of(self._usage, self.wanted.body.document)})
        return self._close() + end + _event("message_stop", {})

    def _chunk(self, chunk: Mapping[str, Any]) -> bytes:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return b""
        first = (choice for choice in choices if isinstance(choice, dict) and not choice.get("index"))
        return b"".join(map(self._choice, first))

    def _choice(self, choice: Mapping[str, Any]) -> bytes:
        delta = choice.get("delta")
        said = self._delta(delta) if isinstance(delta, dict) else b""
        finish = choice.get("finish_reason")
        if finish:
            self._finish = finish
            self._matched = matched_stop(choice) or self._matched
            if any(not call.is_begun for call in self._calls.values()):
                raise BadAnswerError("a call without a name")
            said += self._close()
        return said

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        said = b""
        if (content := delta.get("content")) and isinstance(content, str):
            said = self._text([content])
        if thoughts := reasoning_of(delta):
            said = self._thinking([thoughts]) + said
        if (refusal := delta.get("refusal")) and isinstance(refusal, str):
            self._is_refused = True
            said += self._text([refusal])
        if (calls := delta.get("tool_calls")) and isinstance(calls, list):
            said += b"".join(self._piece(piece) for piece in calls if isinstance(piece, dict))
        return said

    def _text(self, texts: list[str]) -> bytes:
        opened = b"" if self._open == "text" else self._begin("text", {"text": ""}, "text_delta", "text")
        return opened + self._said(texts)

    def _thinking(self, texts: list[str]) -> bytes:
        if not self.wanted.shows_thinking:
            before, self._hidden = self._hidden, self._hidden + len(texts)
            return PING * (self._hidden // HIDDEN_DELTAS - before // HIDDEN_DELTAS)
        empty = {"thinking": "", "signature": ""}
        opened = b"" if self._open == "thinking" else self._begin("thinking", empty, "thinking_delta", "thinking")
        return opened + self._said(texts)

    def _piece(self, piece: Mapping[str, Any]) -> bytes:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        text = arguments if isinstance(arguments, str) else ""
        call = self._call_of(piece, name)
        if not call.is_begun:
            call.held += text
            if not isinstance(name, str) or not name:
                return b""
            call.name, call.is_begun, text = name, True, call.held
            self._call = call
            named = {"id": call_id(call.id, call.number, self.message_id), "name": name, "input": {}}
            opened = self._begin("tool_use", named, "input_json_delta", "partial_json")
            return opened + (self._said([text]) if text else b"")
        if not text:
            return b""
        if call is not self._call or self._open != "tool_use":
            raise BadAnswerError("pieces of a call behind its end")
        return self._said([text])

    def _call_of(self, piece: Mapping[str, Any], name: object) -> _Call:
        """Return the call that a piece belongs to. Some servers give every call the same index and an id of its own."""
        index, given = piece.get("index"), piece.get("id")
        place = index if type(index) is int else max(self._calls, default=0)
        given = given if isinstance(given, str) else ""
        call = self._calls.get(place)
        if call is None or (call.is_begun and name and given and given != call.id):
            call = self._calls[place] = _Call(self._called)
            self._called += 1
        call.id = call.id or given
        return call

    def _begin(self, kind: str, empty: Mapping[str, Any], delta: str, key: str) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = kind
        head = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":"{delta}","{key}":'
        self._before = "event: content_block_delta\ndata: " + head
        block = {"type": kind, **empty}
        return closed + _event("content_block_start", {"index": self._index, "content_block": block})

    def _said(self, texts: list[str]) -> bytes:
        before = self._before
        return "".join([f"{before}{_quoted(text)}}}}}\n\n" for text in texts]).encode(errors="replace")

    def _close(self) -> bytes:
        """End the block that is open."""
        if not self._open:
            return b""
        closed = _event("content_block_stop", {"index": self._index})
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            closed = _event("content_block_delta", {"index": self._index, "delta": delta}) + closed
        self._open = ""
        return closed


def _event(kind: str, document: Mapping[str, Any]) -> bytes:
    data = json.dumps({"type": kind, **document}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode(errors="replace")


def _error(error: sse.StreamError) -> bytes:
    kind = "overloaded_error" if error.code in _OVERLOADED else error.type
    known = kind if kind in _ERROR_TYPES else "api_error"
    return _event("error", {"error": {"type": known, "message": error.message}})
