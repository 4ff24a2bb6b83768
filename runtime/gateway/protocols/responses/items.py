"""Pure: what a conversation is in the Responses API: a list of items; and the messages of a chat that say the same.

An item is a message, a call of a function, what a call returned, or reasoning. What the assistant did in one go, text
and calls, is one message of a chat. Nothing is kept here between requests, so an item that only names another one is
refused. Shapes: openai-python `types/responses/response_input_item_param.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.gateway.bodies import check_url, invalid
from runtime.gateway.errors import ApiError

_ROLES = frozenset({"user", "system", "developer", "assistant"})
_TEXTS = frozenset({"input_text", "output_text", "text"})
_DETAILS = frozenset({"low", "high", "auto", "original"})


def messages_of(value: object) -> list[dict[str, Any]]:
    """Return the messages that `input` says; raises `ApiError` with status 400, naming what is wrong in it."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise invalid("input", "must be a text or a list of items")
    conversation = _Conversation()
    for index, item in enumerate(value):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid(where, "must be an object")
        _take(conversation, item, where)
    messages = conversation.messages()
    if not messages:
        raise invalid("input", "must have at least one message")
    return messages


def unsupported(param: str, message: str) -> ApiError:
    """Return the refusal of what this gateway does not do."""
    return ApiError(400, f"'{param}' {message}.", code="unsupported_parameter", param=param)


class _Conversation:
    """The messages so far; what the assistant says and calls is gathered until somebody else speaks."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._reasoning: list[str] = []
        self._assistant: dict[str, Any] | None = None

    def say(self, role: str, content: object) -> None:
        if role != "assistant":
            self.end_turn()
            self._messages.append({"role": role, "content": content})
            return
        if self._assistant is not None and (self._assistant["content"] is not None or "tool_calls" in self._assistant):
            self.end_turn()
        self._turn()["content"] = content

    def think(self, text: str) -> None:
        if self._assistant is not None:
            self.end_turn()
        self._reasoning.append(text)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        calls = self._turn().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def answer(self, call_id: str, content: object) -> None:
        self.end_turn()
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def end_turn(self) -> None:
        if self._assistant is not None:
            self._messages.append(self._assistant)
        self._assistant = None
        # Reasoning belongs to the answer that it led to.
        self._reasoning.clear()

    def messages(self) -> list[dict[str, Any]]:
        self.end_turn()
        return self._messages

    def _turn(self) -> dict[str, Any]:
        if self._assistant is None:
            self._assistant = {"role": "assistant", "content": None}
            if self._reasoning:
                self._assistant["reasoning_content"] = "\n".join(self._reasoning)
        return self._assistant


def _take(conversation: _Conversation, item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type")
    match kind:
        case None | "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in _ROLES:
                raise invalid(f"{where}.role", "must be 'user', 'system', 'developer' or 'assistant'")
            # Every engine's template knows `system`; few know OpenAI's newer name for it.
            told = "system" if role == "developer" else role
            conversation.say(told, _content(item.get("content"), f"{where}.content", is_assistant=role == "assistant"))
        case "function_call":
            call_id, name = _text(item, "call_id", where), _text(item, "name", where)
            arguments = item.get("arguments")
            if not isinstance(arguments, str):
                raise invalid(f"{where}.arguments", "must be a text: the arguments as JSON")
            conversation.call(call_id, name, arguments)
        case "function_call_output":
            call_id = _text(item, "call_id", where)
            conversation.answer(call_id, _content(item.get("output"), f"{where}.output"))
        case "reasoning":
            for text in _reasoning(item, where):
                conversation.think(text)
        case "item_reference":
            raise unsupported(where, "refers to an item that is kept nowhere: this API is stateless, send the item")
        case str():
            raise unsupported(f"{where}.type", f"is '{kind}', which is not supported")
        case _:
            raise invalid(f"{where}.type", "must be a text")


def _content(value: object, where: str, *, is_assistant: bool = False) -> str | list[dict[str, Any]]:
    """Return content as a chat has it: a text where it is one, else parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid(where, "must be a text or a list of parts")
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if is_assistant or all(part["type"] == "text" for part in parts):
        return _joined(parts, where)
    return parts


def _joined(parts: Sequence[Mapping[str, Any]], where: str) -> str:
    for index, part in enumerate(parts):
        if part["type"] != "text":
            raise invalid(f"{where}[{index}]", "must be a text: assistants say nothing else")
    return "".join(part["text"] for part in parts)


def _part(part: object, where: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise invalid(where, "must be an object")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise invalid(f"{where}.type", "must be a text")
    if kind in _TEXTS or kind == "refusal":
        key = "refusal" if kind == "refusal" else "text"
        text = part.get(key)
        if not isinstance(text, str):
            raise invalid(f"{where}.{key}", "must be a text")
        return {"type": "text", "text": text}
    if kind == "input_image":
        return _image(part, where)
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise unsupported(f"{where}.type", f"is '{kind}', which is not supported")


def _image(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if part.get("file_id") is not None:
        raise unsupported(f"{where}.file_id", "names a file, and no files are kept here: send a data: URL")
    url, detail = part.get("image_url"), part.get("detail")
    check_url(url, f"{where}.image_url")
    if detail is not None and (not isinstance(detail, str) or detail not in _DETAILS):
        raise invalid(f"{where}.detail", "must be 'low', 'high', 'auto' or 'original'")
    image = {"url": url}
    return {"type": "image_url", "image_url": image if detail in (None, "auto") else {**image, "detail": detail}}


def _reasoning(item: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield the reasoning of an item; one that is only a summary or encrypted says nothing that a model could read."""
    content = item.get("content")
    if content is None:
        return
    if not isinstance(content, list):
        raise invalid(f"{where}.content", "must be a list of parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise invalid(f"{where}.content[{index}]", "must be an object with a text")
        yield part["text"]


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise invalid(f"{where}.{key}", "must be a text that is not empty")
    return value


def arguments_text(value: object) -> str:
    """Return a call's arguments as text; some servers send the object."""
    return value if isinstance(value, str) else json.dumps({} if value is None else value, ensure_ascii=False)
