"""Pure: what answers say of their tokens: taken out where nobody asked, and estimated where an endpoint is silent.

The last chunk of a stream says it, with `choices: []`, only to clients that asked with `stream_options.include_usage`:
others look at `choices[0]` and fail. Nothing is asked of endpoints that the client did not ask for: some refuse
`stream_options`, and those that take it put a `usage` into every chunk. How many tokens came is counted instead, one an
event, which is how engines send them. What an endpoint says in a chunk with choices, as some do in the last one, is
said again in the chunk that clients read. What is estimated says so: `"estimated": true` inside of `usage`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.gateway import sse

BYTES_A_TOKEN = 4
"""Of text, on average: OpenAI's page on its tokenizer says four characters of English; other scripts have more bytes a
character, and more tokens."""
TOKENS_A_MESSAGE = 4
"""What chat templates add to each message, on average."""
TOKENS_AN_IMAGE = 256
"""About as many as small vision models make of one."""
_FRAME_EVENTS = 3
"""Events of a stream that carry no token: the role, the end of the answer, and `[DONE]`."""

_ZEROS = (b'"prompt_tokens":0', b'"prompt_tokens": 0')
_COUNTED = b'"completion_tokens"'
"""Quotes inside of JSON strings are escaped: text of the model never looks like this key."""
_NO_CHOICES = re.compile(rb'(?<!\\)"choices"\s*:\s*\[\s*\]')
_DONE_LINE = re.compile(rb"(?:^|(?<=[\r\n]))data: ?\[DONE\]")
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_SAMPLE = 4096
"""Bytes of a stream's beginning that are kept for the id, the time and the model that its chunks name."""


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text."""
    return math.ceil(len(text.encode(errors="replace")) / BYTES_A_TOKEN)


def prompt_tokens(asked: Mapping[str, Any]) -> int:
    """Estimate the tokens that a model reads of a request: of a chat, of a text completion, or for vectors."""
    messages = asked.get("messages")
    if isinstance(messages, list):
        read = sum(_message_tokens(message) for message in messages if isinstance(message, dict))
        tools = asked.get("tools")
        return max(1, read + (tokens_of(json.dumps(tools)) if tools else 0))
    return max(1, _input_tokens(asked.get("prompt", asked.get("input"))))


def estimated(prompt: int, completion: int) -> dict[str, Any]:
    """Return a usage of estimated numbers."""
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, "estimated": True}


def completed(raw: bytes, asked: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return an answer that is not streamed with a usage, and how many tokens it says were generated.

    The answer is changed only where it says nothing, or zero of what is not empty; what is no answer is left alone.
    """
    said, end = sse.completion_tokens(raw), max(0, len(raw) - sse.TAIL)
    if said and all(raw.find(zero, end) < 0 for zero in _ZEROS):
        return raw, said
    try:
        document = json.loads(raw)
        choices = document["choices"]
        text = sum(_answer_tokens(choice) for choice in choices)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return raw, said or 0
    usage = _mended(document.get("usage"), asked, text)
    if usage is document.get("usage"):
        return raw, int(usage["completion_tokens"])
    document["usage"] = usage
    made = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return made, int(usage["completion_tokens"])


def wants_usage(asked: Mapping[str, Any]) -> bool:
    """Tell whether the client of a stream asked for its usage."""
    options = asked.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


class StreamUsage:
    """The usage of one stream on its way to a client."""

    __slots__ = ("_asked", "_events", "_is_told", "_said", "_said_at", "_sample", "_size", "_wants")

    def __init__(self, asked: Mapping[str, Any], *, wants: bool | None = None) -> None:
        """`asked` is the request as the endpoint has it; `wants` tells what the client wants where that differs."""
        self._asked = asked
        self._wants = wants_usage(asked) if wants is None else wants
        self._is_told = False
        self._events = 0
        """Counted only where the client will be told."""
        self._said = b""
        """The last events that say how many tokens came."""
        self._said_at = 0
        """How many events came before those."""
        self._size = 0
        self._sample = b""

    def feed(self, events: bytes) -> bytes:
        """Return whole events as the client may have them."""
        # Once an event: `find` takes half the time of `in`.
        self._size += len(events)
        if self._wants:
            if events.find(_COUNTED) >= 0:
                self._said, self._said_at = events, self._events
            self._events += events.count(b"data:")
        if events.find(b'"usage"') >= 0 and _NO_CHOICES.search(events) is not None:
            events = b"".join(self._told(event) for event in sse.split_events(events))
        if not self._sample:
            start = events.find(b"data:")
            self._sample = events[start : start + _SAMPLE] if start >= 0 else b""
        if self._wants and not self._is_told and events.find(sse.DONE_MARK) >= 0:
            end = _DONE_LINE.search(events)
            if end is not None:
                return events[: end.start()] + self.chunk() + events[end.start() :]
        return events

    def chunk(self) -> bytes:
        """Return the chunk that the client has asked for and not got; empty where there is none to send."""
        if not self._wants or self._is_told:
            return b""
        self._is_told = True
        usage = _mended(self._reported(), self._asked, max(1, self.tokens()))
        document = {**self._head(), "choices": [], "usage": usage}
        return b"data: " + json.dumps(document, ensure_ascii=False).encode(errors="replace") + b"\n\n"

    def tokens(self) -> int:
        """Return how many tokens came, as far as events tell; uncounted, by their size, which is nearly the same."""
        events = self._events
        if not events and self._sample:
            events = round(self._size * self._sample.count(b"data:") / len(self._sample))
        return max(0, events - _FRAME_EVENTS)

    def _told(self, event: bytes) -> bytes:
        """Return an event as the client may have it: a usage is taken out, or made complete."""
        if _NO_CHOICES.search(event) is None:
            return event
        try:
            document = json.loads(sse.event_data(event))
        except (ValueError, RecursionError):
            return event
        usage = document.get("usage") if isinstance(document, dict) else None
        if not isinstance(usage, dict) or document.get("choices") != []:
            return event
        if not self._wants:
            return b""
        self._is_told = True
        mended = _mended(usage, self._asked, self.tokens())
        if mended is usage:
            return event
        return b"data: " + json.dumps({**document, "usage": mended}).encode() + b"\n\n"

    def _reported(self) -> dict[str, Any]:
        """Return the last usage that came in a chunk with choices, without what it said too early to be the whole."""
        place, found, found_at = self._said_at, dict[str, Any](), 0
        for event in sse.split_events(self._said):
            place += event.count(b"data:")
            try:
                document = json.loads(sse.event_data(event) if event.find(_COUNTED) >= 0 else b"null")
            except (ValueError, RecursionError):
                continue
            usage = document.get("usage") if isinstance(document, dict) else None
            if isinstance(usage, dict):
                found, found_at = usage, place
        if self._events - found_at > _FRAME_EVENTS:
            return {"prompt_tokens": found.get("prompt_tokens")} if found else {}
        return found

    def _head(self) -> dict[str, Any]:
        """Return what all chunks of the stream have in common."""
        for event in sse.split_events(self._sample):
            try:
                document = json.loads(sse.event_data(event) or b"null")
            except (ValueError, RecursionError):
                continue
            if isinstance(document, dict) and document.get("choices"):
                return {key: document[key] for key in ("id", "object", "created", "model") if key in document}
        return {}


def _mended(usage: object, asked: Mapping[str, Any], completion: int) -> dict[str, Any]:
    """Return a usage without gaps: the one that is given where it has none.

    `completion` is how many tokens the answer has, as far as that can be estimated.
    """
    said = usage if isinstance(usage, dict) else {}
    given, made = _count(said, "prompt_tokens"), _count(said, "completion_tokens")
    if given and (made or (made == 0 and completion == 0)):
        return said
    return {**said, **estimated(given or prompt_tokens(asked), made or completion)}


def _count(usage: Mapping[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if type(value) is int and value >= 0 else None


def _answer_tokens(choice: Mapping[str, Any]) -> int:
    message = choice.get("message") or {}
    calls = message.get("tool_calls")
    texts = (choice.get("text"), *(message.get(key) for key in _TEXTS))
    said = sum(tokens_of(text) for text in texts if isinstance(text, str))
    return said + (tokens_of(json.dumps(calls)) if calls else 0)


def _message_tokens(message: Mapping[str, Any]) -> int:
    content, calls = message.get("content"), message.get("tool_calls")
    parts: Iterable[object] = content if isinstance(content, list) else (content,)
    said = sum(_part_tokens(part) for part in parts)
    return TOKENS_A_MESSAGE + said + (tokens_of(json.dumps(calls)) if calls else 0)


def _part_tokens(part: object) -> int:
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(text, str):
        return tokens_of(text)
    return 0 if part is None else TOKENS_AN_IMAGE


def _input_tokens(value: object) -> int:
    if isinstance(value, str):
        return tokens_of(value)
    if isinstance(value, list):
        return len(value) if value and isinstance(value[0], int) else sum(_input_tokens(part) for part in value)
    return 0
