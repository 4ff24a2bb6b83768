"""Pure: the messages of a conversation, tool calls and their results among them."""

import json
from dataclasses import dataclass
from typing import Any

from runtime.worker.errors import RequestError
from runtime.worker.fields import valid_text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True, slots=True)
class PastCall:
    """A tool call of an earlier answer. `arguments` is JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its parts joined."""

    role: str
    content: str
    calls: tuple[PastCall, ...] = ()
    """What the assistant called."""
    call_id: str | None = None
    """Which call a tool's message answers."""
    name: str | None = None
    """Which tool a tool's message comes from."""
    thoughts: str | None = None
    """What the assistant thought before it said this: some templates show it again while a turn lasts."""


def parse_messages(value: object) -> tuple[Message, ...]:
    """Parse a request's `messages`; raises RequestError."""
    if not isinstance(value, list):
        raise RequestError("messages must be a list of messages.", param="messages")
    if not value:
        raise RequestError("messages must hold at least one message.", param="messages")
    messages = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))
    return _with_names(messages)


def _with_names(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Give results the names of their calls: some templates tell results apart by name, clients by id."""
    names = {call.id: call.name for message in messages for call in message.calls}
    return tuple(
        Message(message.role, message.content, call_id=message.call_id, name=names.get(message.call_id))
        if message.role == "tool" and message.name is None and message.call_id is not None
        else message
        for message in messages
    )


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object.", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        instead = " Results of functions are messages of role tool." if role == "function" else ""
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.{instead}", param=f"{where}.role")
    if value.get("function_call"):
        message = f"{where}.function_call is not supported: put the call into tool_calls."
        raise RequestError(message, param=f"{where}.function_call")
    calls = _calls(value.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    if role != "assistant" and value.get("tool_calls"):
        raise RequestError(f"{where}.tool_calls belongs to the role assistant.", param=f"{where}.tool_calls")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    text = _content(content, f"{where}.content")
    if role != "tool":
        thoughts = _thoughts(value, where) if role == "assistant" else None
        return Message(_ROLES[role], text, calls, thoughts=thoughts)
    call_id = _optional_text(value.get("tool_call_id"), f"{where}.tool_call_id")
    return Message(role, text, call_id=call_id, name=_optional_text(value.get("name"), f"{where}.name"))


def _thoughts(message: dict[str, Any], where: str) -> str | None:
    """Return the thoughts, which servers and their clients call by either name; OpenAI's own API knows neither."""
    for key in ("reasoning_content", "reasoning"):
        if isinstance(found := message.get(key), str) and found:
            return valid_text(found, f"{where}.{key}")
    return None


def _calls(value: object, where: str) -> tuple[PastCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a list of calls.", param=where)
    return tuple(_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _call(value: object, where: str) -> PastCall:
    if not isinstance(value, dict) or not isinstance(value.get("function"), dict):
        raise RequestError(f"{where} must be an object with a function.", param=where)
    if value.get("type", "function") != "function":
        raise RequestError(f"{where}.type must be function.", param=f"{where}.type")
    function: dict[str, Any] = value["function"]
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.function.name must be a nonempty string.", param=f"{where}.function.name")
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, dict):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    if not isinstance(arguments, str):
        message = f"{where}.function.arguments must be JSON in a string."
        raise RequestError(message, param=f"{where}.function.arguments")
    call_id = _optional_text(value.get("id"), f"{where}.id") or ""
    return PastCall(
        call_id, valid_text(name, f"{where}.function.name"), valid_text(arguments, f"{where}.function.arguments")
    )


def _optional_text(value: object, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string.", param=where)
    return valid_text(value, where)


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return valid_text(value, where)
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a string or a list of parts.", param=where)
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise RequestError(f"{where}[{index}] must be an object.", param=f"{where}[{index}]")
        if part.get("type") != "text":
            raise RequestError("Only parts of type text are supported.", param=f"{where}[{index}].type")
        text = part.get("text")
        if not isinstance(text, str):
            raise RequestError(f"{where}[{index}].text must be a string.", param=f"{where}[{index}].text")
        texts.append(valid_text(text, f"{where}[{index}].text"))
    return "".join(texts)
