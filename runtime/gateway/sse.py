"""Pure: server-sent events as far as relaying needs them: whole events, the commit point, and whether a stream ended.

Bytes are never rebuilt. Events are cut only where a blank line ends them, so that a stream that breaks never leaves
half an event in front of the error event; every decision is taken on whole events and so does not depend on how the
network split the bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

LARGEST_EVENT = 4 * 1024 * 1024
"""Bytes of one event, or of everything before the first content; more is an error of the endpoint."""
TAIL = 4096
"""Bytes at the end of a stream that are kept for its usage."""
DONE = b"data: [DONE]\n\n"
DONE_MARK = b"[DONE]"

_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n")
_ERROR_LINE = re.compile(rb"(?:^|[\r\n])data: ?\{\s*\"error\"\s*:")
# Quotes inside JSON strings are escaped, so that text of the model cannot look like these keys.
_FINISHED = re.compile(rb'(?<!\\)"finish_reason"\s*:\s*"')
_COMPLETION_TOKENS = re.compile(rb'(?<!\\)"completion_tokens"\s*:\s*(\d{1,9})')
_CACHED_TOKENS = re.compile(rb'(?<!\\)"cached_tokens"\s*:\s*(\d{1,9})')

_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")


class EventTooLargeError(Exception):
    """An endpoint sent more than an event may hold."""


class StreamFailedError(Exception):
    """An endpoint reported an error behind its first content."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Framer:
    """Cuts a byte stream after whole events."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """Return everything up to the end of the last whole event; the rest is kept for the next call."""
        if self._partial:
            data = self._partial + data
        elif data.endswith(b"\n\n"):
            return data
        line_feeds, carriage_returns = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        cut = max(line_feeds + 2 if line_feeds >= 0 else 0, carriage_returns + 4 if carriage_returns >= 0 else 0)
        self._partial = data[cut:]
        if len(self._partial) > LARGEST_EVENT:
            raise EventTooLargeError
        return data[:cut]

    def rest(self) -> bytes:
        """Return the event that the stream's end left without its blank line."""
        return self._partial


@dataclass(frozen=True, slots=True)
class StreamError:
    """An error that an endpoint reported inside a stream."""

    type: str
    message: str
    code: str | None = None
    param: str | None = None


Sign = Literal["content", "nothing", "malformed"]


def event_data(event: bytes) -> bytes:
    """Return the data of one whole event; empty where it has none."""
    lines = (line for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def read_event(event: bytes) -> Sign | StreamError:
    """Tell what one whole event means for the commit point.

    Content is text, reasoning, a tool call or the end of the answer; a role alone, usage alone and comments are not.
    """
    return parse_event(event)[0]


def parse_event(event: bytes) -> tuple[Sign | StreamError, dict[str, Any]]:
    """Return what `read_event` does, and the JSON object of the event; an empty one where it has none."""
    data = event_data(event)
    if not data:
        return "nothing", {}
    if data.strip() == b"[DONE]":
        return "content", {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return "malformed", {}
    if not isinstance(document, dict):
        return "malformed", {}
    if document.get("error"):
        return _stream_error(document["error"]), document
    choices = document.get("choices")
    if not isinstance(choices, list):
        return "nothing", document
    return "content" if any(_has_content(choice) for choice in choices) else "nothing", document


class Commit:
    """Holds a stream back until its first content."""

    __slots__ = ("_framer", "_held", "_size", "malformed")

    def __init__(self) -> None:
        self._framer = Framer()
        self._held: list[bytes] = []
        self._size = 0
        self.malformed = 0
        """Events that were no JSON; they are passed on."""

    def feed(self, data: bytes) -> bytes | StreamError | None:
        """Return everything held once it has content, an error that came before any, or None while neither did.

        Raises `EventTooLargeError`.
        """
        whole = self._framer.feed(data)
        self._size += len(data)
        if self._size > LARGEST_EVENT:
            raise EventTooLargeError
        start = 0
        for end in _EVENT_END.finditer(whole):
            sign = read_event(whole[start : end.end()])
            if isinstance(sign, StreamError):
                return sign
            self.malformed += sign == "malformed"
            if sign == "content":
                return b"".join((*self._held, whole))
            start = end.end()
        self._held.append(whole)
        return None

    def framer(self) -> Framer:
        """Return the framer with the event that has begun, for what follows the commit point."""
        return self._framer


def split_events(whole: bytes) -> list[bytes]:
    """Split whole events, each with the blank line that ends it; spare line ends follow as a piece of their own."""
    events, start = [], 0
    for end in _EVENT_END.finditer(whole):
        events.append(whole[start : end.end()])
        start = end.end()
    return [*events, whole[start:]] if start < len(whole) else events


class Tail:
    """The end of a stream, for what it says about the whole."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, events: bytes) -> None:
        """Take whole events that are passed on."""
        self._bytes = events[-TAIL:] if len(events) >= TAIL else (self._bytes + events)[-TAIL:]

    def is_done(self) -> bool:
        """Tell whether the stream said `[DONE]`."""
        # Looked for from the end, where it usually is; a pattern would walk through the whole tail.
        place = max(self._bytes.rfind(b"data: [DONE]"), self._bytes.rfind(b"data:[DONE]"))
        return place == 0 or (place > 0 and self._bytes[place - 1] in b"\r\n")

    def is_finished(self) -> bool:
        """Tell whether the answer was complete: a finish reason, with or without `[DONE]`."""
        return self.is_done() or _FINISHED.search(self._bytes) is not None

    def completion_tokens(self) -> int | None:
        """Return the tokens that the endpoint says it generated."""
        return completion_tokens(self._bytes)

    def cached_tokens(self) -> int | None:
        """Return the tokens of the prompt that the endpoint says it had read before."""
        return cached_tokens(self._bytes)


def cut_error(events: bytes) -> tuple[bytes, StreamError | None]:
    """Return whole events up to an error event, and that error; all of them and None where there is none."""
    if events.find(b'"error"') < 0 or _ERROR_LINE.search(events) is None:
        return events, None
    before = 0
    for event in split_events(events):
        sign = read_event(event)
        if isinstance(sign, StreamError):
            return events[:before], sign
        before += len(event)
    return events, None


def completion_tokens(text: bytes) -> int | None:
    """Return the last `completion_tokens` of an answer's end."""
    # Most streams do not say: looking for the plain key first costs a tenth of the pattern.
    place = text.rfind(b'"completion_tokens"', max(0, len(text) - TAIL))
    found = _COMPLETION_TOKENS.search(text, max(0, place - 1)) if place >= 0 else None
    return int(found[1]) if found else None


def cached_tokens(text: bytes) -> int | None:
    """Return the last `cached_tokens` of an answer's end."""
    place = text.rfind(b'"cached_tokens"', max(0, len(text) - TAIL))
    found = _CACHED_TOKENS.search(text, max(0, place - 1)) if place >= 0 else None
    return int(found[1]) if found else None


def restart_event(endpoint: str, attempt: int) -> bytes:
    """Write the event behind which an answer begins anew: a chunk without choices, which clients pass over."""
    restart = {"restart": {"endpoint": endpoint, "attempt": attempt}}
    document = {"object": "chat.completion.chunk", "choices": [], "orchestrate": restart}
    return b": restart\ndata: " + json.dumps(document).encode() + b"\n\n"


def _has_content(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    if choice.get("finish_reason") or choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(key) for key in _CONTENT_KEYS)


def _stream_error(error: object) -> StreamError:
    if not isinstance(error, dict):
        return StreamError("", str(error))
    code, param = error.get("code"), error.get("param")
    return StreamError(
        str(error.get("type", "")),
        str(error.get("message", "")),
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
    )
