"""Pure: the shapes of OpenAI's answers, whole and as streams.

A stream's chunks differ in one text only, so everything around it is encoded once.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["chat", "completion"]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        """Return OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer share. `created` is in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str

    def whole(self, text: str, finish: str | None, usage: Usage) -> dict[str, Any]:
        """Build the answer to a request that does not stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [choice], "usage": usage.as_json()}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def chunk(self, choices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """Build one chunk of a stream; `more` are further fields of it."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, **more}

    def text_choice(self, text: str, finish: str | None = None) -> dict[str, Any]:
        """Build the choice of one chunk: a delta for chat, a text otherwise."""
        body = {"delta": {"content": text} if text else {}} if self.kind == "chat" else {"text": text}
        return {"index": 0, **body, "logprobs": None, "finish_reason": finish}


class EventStream:
    """Encodes one streamed answer as server-sent events."""

    def __init__(self, envelope: Envelope, *, include_usage: bool) -> None:
        """With `include_usage` every chunk has a `usage`, null but in the last, as OpenAI does it."""
        self._envelope = envelope
        self._more: dict[str, object] = {"usage": None} if include_usage else {}
        mark = "\0"
        frame = _event(envelope.chunk([envelope.text_choice(mark)], **self._more))
        self._before, self._after = frame.rsplit(json.dumps(mark).encode(), 1)

    def first(self) -> bytes:
        """Return the event that opens a chat answer and carries its role; nothing for text."""
        if self._envelope.kind != "chat":
            return b""
        choice = self._envelope.text_choice("") | {"delta": {"role": "assistant", "content": ""}}
        return self._encode([choice])

    def text(self, text: str) -> bytes:
        """Return the event of a piece of text."""
        return self._before + json.dumps(text, ensure_ascii=False).encode() + self._after

    def end(self, finish: str, usage: Usage | None) -> bytes:
        """Return the last events: the finish, the usage where it was asked for, and the terminator."""
        events = self._encode([self._envelope.text_choice("", finish)])
        if usage is not None:
            events += _event(self._envelope.chunk([], usage=usage.as_json()))
        return events + DONE

    def _encode(self, choices: list[dict[str, Any]]) -> bytes:
        return _event(self._envelope.chunk(choices, **self._more))


def model_list(model: str, created: int, context_length: int | None) -> dict[str, Any]:
    """Build the answer of `/v1/models`; `max_model_len` is vLLM's name for the context length."""
    entry = {"id": model, "object": "model", "created": created, "owned_by": "orchestrate"}
    if context_length is not None:
        entry["max_model_len"] = context_length
    return {"object": "list", "data": [entry]}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: dict[str, Any]) -> bytes:
    """Return the event that ends a stream which failed; no finish and no terminator follow it."""
    return _event(error)
