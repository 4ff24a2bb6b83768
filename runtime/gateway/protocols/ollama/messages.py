"""Pure: the messages of an Ollama conversation in OpenAI's words.

They differ in the arguments of tool calls, which are an object in Ollama and a text in OpenAI; in results of tools,
which name the tool in Ollama (`tool_name`) and the call in OpenAI; in pictures, which are a list of base64 texts beside
the content; and in `thinking`. Read in ollama `api/types.go` (`Message`) and `docs/api.md`.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from runtime.gateway.bodies import invalid
from runtime.gateway.protocols.ollama.fields import image, listed, mapped, text


def openai_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Return a conversation in OpenAI's words; raises `ApiError` with status 400."""
    told = _Conversation()
    return [told.said(message, f"messages[{index}]") for index, message in enumerate(messages)]


def content_of(said: str, images: list[Any], where: str) -> str | list[dict[str, Any]]:
    """Return the content of a message, in parts where pictures belong to it."""
    if not images:
        return said
    parts = [image(value, f"{where}[{index}]") for index, value in enumerate(images)]
    return [*([{"type": "text", "text": said}] if said else []), *parts]


class _Conversation:
    """Remembers the calls that have no result yet: Ollama's clients need not number them."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        """Ids of the calls without a result."""
        self._order: deque[str] = deque()
        """Ids of calls in their order, those with a result among them until they come first."""
        self._named: dict[str, deque[str]] = defaultdict(deque)
        """The same by the name of the tool."""
        self._calls = 0

    def said(self, message: object, where: str) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise invalid(where, "must be an object")
        role = text(message, "role", f"{where}.").lower()
        if not role:
            raise invalid(f"{where}.role", "must be a text")
        said = text(message, "content", f"{where}.")
        images, calls = listed(message, "images", f"{where}."), listed(message, "tool_calls", f"{where}.")
        thinking, name = text(message, "thinking", f"{where}."), text(message, "tool_name", f"{where}.")
        call_id = text(message, "tool_call_id", f"{where}.")
        called = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
        made: dict[str, Any] = {"role": role, "content": content_of(said, images, f"{where}.images")}
        if role == "assistant":
            if thinking:
                made["reasoning_content"] = thinking
            if called:
                made["tool_calls"] = [self._called(*call) for call in called]
        elif role == "tool":
            made |= self._answered(name, call_id)
        return made

    def _called(self, given_id: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        call_id = given_id or self._new_id()
        self._open.add(call_id)
        self._order.append(call_id)
        self._named[name].append(call_id)
        written = json.dumps(arguments, ensure_ascii=False)
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}

    def _answered(self, name: str, call_id: str) -> dict[str, Any]:
        if not call_id:
            calls = self._named.get(name, deque()) if name else self._order
            while calls and calls[0] not in self._open:
                calls.popleft()
            # Ollama takes a result without its call, which some clients leave out; OpenAI has a result name one.
            call_id = calls[0] if calls else self._new_id()
        self._open.discard(call_id)
        return {"tool_call_id": call_id, **({"name": name} if name else {})}

    def _new_id(self) -> str:
        """Return an id of nine letters and digits: Mistral's templates take no others."""
        self._calls += 1
        return f"call{self._calls:05d}"


def _call(call: object, where: str) -> tuple[str, str, Mapping[str, Any]]:
    """Return the id of a call, empty where it has none, the name of what is called, and with what."""
    if not isinstance(call, dict):
        raise invalid(where, "must be an object")
    function = mapped(call, "function", f"{where}.")
    name = text(function, "name", f"{where}.function.")
    if not name:
        raise invalid(f"{where}.function.name", "must be a text")
    return text(call, "id", f"{where}."), name, mapped(function, "arguments", f"{where}.function.")
