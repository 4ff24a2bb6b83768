"""Pure: makes one document of a stream, for clients that want no stream from engines that are always asked for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.gateway.sse import Sign, StreamError, parse_event

_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
_FIRST = frozenset({"id", "created", "model", "system_fingerprint"})
"""What is taken as the first event says it; of what else stands beside the choices the last word counts."""
_MADE = frozenset({"object", "choices", "usage"})
_OF_CHOICES = frozenset({"index", "delta", "text", "finish_reason"})


class Collector:
    """Gathers the events of one answer with one choice."""

    def __init__(self, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._common: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        """What the choice says beside its text: `logprobs`, null here, and an engine's own fields."""
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._usage: Any = None

    def feed(self, event: bytes) -> Sign | StreamError:
        """Take one whole event; comments, and what is no JSON object, are passed over. Return what it means."""
        sign, document = parse_event(event)
        for key in document.keys() - _MADE:
            if key not in _FIRST or key not in self._common:
                self._common[key] = document[key]
        self._usage = document.get("usage") or self._usage
        for choice in _list(document.get("choices")):
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._take(choice)
        return sign

    def answer(self) -> bytes | None:
        """Return the answer as one JSON document; None where the stream ended before its end."""
        if self._finish_reason is None:
            return None
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish_reason, **self._more}
        if self._is_chat:
            choice["message"] = self._message()
        else:
            choice["text"] = self._text("text")
        kind = "chat.completion" if self._is_chat else "text_completion"
        document = {**self._common, "object": kind, "choices": [choice]}
        if self._usage is not None:
            document["usage"] = self._usage
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

    def _take(self, choice: Mapping[str, Any]) -> None:
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        for key in choice.keys() - _OF_CHOICES:
            if choice[key] is not None or key not in self._more:
                self._more[key] = choice[key]
        if isinstance(choice.get("text"), str):
            self._texts.setdefault("text", []).append(choice["text"])
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for key in _TEXTS:
            if isinstance(delta.get(key), str):
                self._texts.setdefault(key, []).append(delta[key])
        for call in _list(delta.get("tool_calls")):
            if isinstance(call, dict):
                self._take_call(call)

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        index = piece.get("index")
        place = index if isinstance(index, int) else len(self._calls)
        call = self._calls.setdefault(place, {"id": None, "type": "function", "function": {}})
        call["id"] = call["id"] or piece.get("id")
        given = piece.get("function")
        for key, value in given.items() if isinstance(given, dict) else ():
            before = call["function"].get(key)
            call["function"][key] = before + value if isinstance(before, str) and isinstance(value, str) else value

    def _message(self) -> dict[str, Any]:
        texts = {key: self._text(key) for key in _TEXTS if self._text(key)}
        message: dict[str, Any] = {"role": "assistant", "content": None if self._calls else "", **texts}
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return message

    def _text(self, key: str) -> str:
        return "".join(self._texts.get(key, ()))


def _list(value: object) -> list[Any]:
    """Return a list; an empty one for what is none."""
    return value if isinstance(value, list) else []
