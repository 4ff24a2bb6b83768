"""Pure: the shapes of OpenAI's answers, whole and as streams.

A stream's chunks differ in one text only, so everything around it is encoded once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["chat", "completion"]

DONE = b"data: [DONE]\n\n"
COMMENT = b":\n\n"
"""An event that clients pass over."""
_SPLIT_DEPTH = 5
"""Of an answer, its choices, one of them, its log probabilities, and their lists of tokens."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    """Counted once, however many choices there are."""
    completion_tokens: int
    """Of all choices."""
    cached_tokens: int = 0
    """Of the prompt, those that needed not be computed."""

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer share. `created` is in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """Build the answer to a request that does not stream."""
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, "usage": usage.as_json()}

    def whole_choice(
        self, index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Build one choice of an answer that does not stream."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": logprobs}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return choice

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def chunk(self, choices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """Build one chunk of a stream; `more` are further fields of it."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, **more}

    def text_choice(
        self, index: int, text: str, finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build the choice of one chunk: a delta for chat, a text otherwise."""
        body = {"delta": {"content": text} if text else {}} if self.kind == "chat" else {"text": text}
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": finish}


class EventStream:
    """Encodes one streamed answer as server-sent events."""

    def __init__(self, envelope: Envelope, *, include_usage: bool) -> None:
        """With `include_usage` every chunk has a `usage`, null but in the last, as OpenAI does it."""
        self._envelope = envelope
        self._more: dict[str, object] = {"usage": None} if include_usage else {}
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        """What stands before and behind the text, keyed by the choice's number."""

    def first(self, index: int = 0) -> bytes:
        """Return the event that opens a choice of a chat and carries its role; nothing for text."""
        if self._envelope.kind != "chat":
            return b""
        choice = self._envelope.text_choice(index, "") | {"delta": {"role": "assistant", "content": ""}}
        return self._encode([choice])

    def text(self, text: str, index: int = 0) -> bytes:
        """Return the event of a piece of text."""
        before, after = self._frames.get(index) or self._frame(index)
        return before + json.dumps(text, ensure_ascii=False).encode() + after

    def told(self, index: int, text: str, logprobs: dict[str, Any]) -> bytes:
        """Return the event of a piece of text, which may be empty, with its tokens' log probabilities."""
        return self._encode([self._envelope.text_choice(index, text, None, logprobs)])

    def delta(self, index: int, delta: dict[str, Any]) -> bytes:
        """Return the event of a delta of a chat's choice."""
        return self._encode([self._envelope.text_choice(index, "") | {"delta": delta}])

    def finish(self, index: int, finish: str, **more: object) -> bytes:
        """Return the event that ends a choice; `more` are further fields of it."""
        return self._encode([self._envelope.text_choice(index, "", finish) | more])

    def end(self, usage: Usage | None) -> bytes:
        """Return the last events: the usage where it was asked for, and the terminator."""
        events = b"" if usage is None else _event(self._envelope.chunk([], usage=usage.as_json()))
        return events + DONE

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        mark = "\0"
        frame = _event(self._envelope.chunk([self._envelope.text_choice(index, mark)], **self._more))
        before, after = frame.rsplit(json.dumps(mark).encode(), 1)
        self._frames[index] = before, after
        return before, after

    def _encode(self, choices: list[dict[str, Any]]) -> bytes:
        return _event(self._envelope.chunk(choices, **self._more))


def encoded(body: dict[str, Any]) -> bytes:
    """Encode a whole answer in many small steps: one call of `json.dumps` lets no other thread run until it ends."""
    return "".join(_pieces(body, _SPLIT_DEPTH)).encode()


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if depth and isinstance(value, dict):
        for index, (key, part) in enumerate(value.items()):
            yield f"{',' if index else '{'}{json.dumps(key)}:"
            yield from _pieces(part, depth - 1)
        yield "}" if value else "{}"
    elif depth and isinstance(value, list):
        for index, part in enumerate(value):
            yield "," if index else "["
            yield from _pieces(part, depth - 1)
        yield "]" if value else "[]"
    else:
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: dict[str, Any]) -> bytes:
    """Return the event that ends a stream which failed; no finish and no terminator follow it."""
    return _event(error)
