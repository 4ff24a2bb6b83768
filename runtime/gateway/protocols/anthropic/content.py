"""Pure: the turns of an Anthropic conversation as OpenAI's messages.

Shapes: anthropic-sdk-python 0.121, `types/message_param.py` and `types/content_block_param.py`. Turns of one role that
follow each other are one turn, as Anthropic's API has it ("Consecutive user or assistant turns in your request will be
combined into a single turn"): most chat templates want the roles to alternate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from runtime.gateway.bodies import invalid
from runtime.gateway.errors import ApiError

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
"""`types/base64_image_source_param.py`."""
_ATTRIBUTION = "x-anthropic-billing-header"
"""Claude Code puts a system block in front that begins so and differs in every request; no model is meant to read it,
and with it no two prompts begin alike. vLLM's Anthropic API leaves it out for the same reason."""
_ROLES = ("user", "assistant", "system")


class _Block(NamedTuple):
    where: str
    content: Mapping[str, Any]


class _Turn(NamedTuple):
    role: str
    blocks: list[_Block]


def system_of(value: object) -> str:
    """Return the system prompt, a text or a list of texts, as one text; raises `ApiError` with status 400."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    texts = (_text(block) for block in _blocks(value, "system"))
    return "\n\n".join(text for text in texts if text and not text.startswith(_ATTRIBUTION))


def messages_of(value: object) -> list[dict[str, Any]]:
    """Return OpenAI's messages; raises `ApiError` with status 400 for what has no equal there."""
    if not isinstance(value, list) or not value:
        raise invalid("messages", "must be a list with at least one message")
    made: list[dict[str, Any]] = []
    for turn in _turns(value):
        match turn.role:
            case "user":
                made.extend(_user(turn))
            case "assistant":
                made.append(_assistant(turn))
            case _:
                made.append({"role": "system", "content": "\n\n".join(_text(block) for block in turn.blocks)})
    if made[-1].get("tool_calls"):
        raise invalid("messages", "ends with a 'tool_use' block: its 'tool_result' has to follow")
    return made


def _turns(messages: list[Any]) -> list[_Turn]:
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise invalid(where, "must be an object")
        role = message.get("role")
        if role not in _ROLES:
            raise invalid(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
        blocks = _blocks(message.get("content"), f"{where}.content")
        if turns and turns[-1].role == role:
            turns[-1].blocks.extend(blocks)
        else:
            turns.append(_Turn(role, list(blocks)))
    return turns


def _blocks(value: object, where: str) -> list[_Block]:
    if isinstance(value, str):
        return [_Block(where, {"type": "text", "text": value})]
    if not isinstance(value, list):
        raise invalid(where, "must be a text or a list of content blocks")
    blocks = []
    for index, content in enumerate(value):
        if not isinstance(content, dict):
            raise invalid(f"{where}[{index}]", "must be an object")
        blocks.append(_Block(f"{where}[{index}]", content))
    return blocks


def _user(turn: _Turn) -> Iterator[dict[str, Any]]:
    """Yield the results of tools, then what the system says between turns, then what the user says.

    That is the order OpenAI's messages need: results stand right behind the calls.
    """
    asides: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    has_results = False
    for block in turn.blocks:
        match block.content.get("type"):
            case "tool_result":
                has_results = True
                yield _result(block, parts)
            case "mid_conv_system":
                texts = _blocks(block.content.get("content"), f"{block.where}.content")
                asides.append({"role": "system", "content": "\n\n".join(_text(text) for text in texts)})
            case _:
                parts.extend(_parts(block))
    yield from asides
    if parts or not (has_results or asides):
        yield {"role": "user", "content": _content(parts)}


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return texts as one text, which every chat template takes, and images as parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _assistant(turn: _Turn) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for block in turn.blocks:
        match block.content.get("type"):
            case "text":
                texts.append(_text(block))
            case "thinking":
                thoughts.append(_string(block, "thinking"))
            case "redacted_thinking":
                pass  # Only its maker can read it.
            case "tool_use":
                calls.append(_call(block))
            case _:
                raise _unsupported(block)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = calls
    return message


def _call(block: _Block) -> dict[str, Any]:
    given = block.content.get("input")
    if not isinstance(given, dict):
        raise invalid(f"{block.where}.input", "must be an object")
    function = {"name": _name(block, "name"), "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": _name(block, "id"), "type": "function", "function": function}


def _result(block: _Block, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message of a tool's result. OpenAI's holds text only: its images go to `images`, the user's parts."""
    content = block.content.get("content")
    parts: list[dict[str, Any]] = []
    for inner in [] if content is None else _blocks(content, f"{block.where}.content"):
        if inner.content.get("type") == "tool_reference":
            parts.append({"type": "text", "text": _name(inner, "tool_name")})
        else:
            parts.extend(_parts(inner))
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    images.extend(part for part in parts if part["type"] != "text")
    is_error = block.content.get("is_error")
    if is_error is not None and not isinstance(is_error, bool):
        raise invalid(f"{block.where}.is_error", "must be true or false")
    if is_error and not text.lstrip("<[").lower().startswith("error"):
        # OpenAI's messages have no other place for it.
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": _name(block, "tool_use_id"), "content": text}


def _parts(block: _Block) -> Iterator[dict[str, Any]]:
    match block.content.get("type"):
        case "text":
            if text := _text(block):
                yield {"type": "text", "text": text}
        case "image":
            yield {"type": "image_url", "image_url": {"url": _data_url(block)}}
        case "document":
            yield from _document(block)
        case "search_result":
            heads = [_string(block, "title"), _string(block, "source")]
            texts = _blocks(block.content.get("content"), f"{block.where}.content")
            yield {"type": "text", "text": "\n".join([*heads, *(_text(text) for text in texts)])}
        case _:
            raise _unsupported(block)


def _data_url(block: _Block) -> str:
    source, where = block.content.get("source"), f"{block.where}.source"
    if not isinstance(source, dict):
        raise invalid(where, "must be an object")
    if source.get("type") != "base64":
        message = "must be of type base64: what an address names would be fetched from inside this network"
        raise invalid(f"{where}.type", message)
    media_type = source.get("media_type")
    if not isinstance(media_type, str) or media_type not in IMAGE_TYPES:
        raise invalid(f"{where}.media_type", f"must be one of {', '.join(sorted(IMAGE_TYPES))}")
    data = source.get("data")
    if not isinstance(data, str) or not data:
        raise invalid(f"{where}.data", "must be the image in base64")
    return f"data:{source['media_type']};base64,{data}"


def _document(block: _Block) -> Iterator[dict[str, Any]]:
    source, where = block.content.get("source"), f"{block.where}.source"
    if not isinstance(source, dict):
        raise invalid(where, "must be an object")
    heads = [text for key in ("title", "context") if isinstance(text := block.content.get(key), str) and text]
    if heads:
        yield {"type": "text", "text": "\n".join(heads)}
    match source.get("type"):
        case "text":
            yield {"type": "text", "text": _string(_Block(where, source), "data")}
        case "content":
            for inner in _blocks(source.get("content"), f"{where}.content"):
                yield from _parts(inner)
        case _:
            raise invalid(f"{where}.type", "must be text or content: no model here reads PDF files")


def _unsupported(block: _Block) -> ApiError:
    kind = block.content.get("type")
    known = "text, image, tool_use, tool_result, thinking"
    if not isinstance(kind, str):
        return invalid(f"{block.where}.type", f"must be a type of content: {known}")
    where = f"{block.where}.type"
    message = f"'{where}' is '{kind[:64]}', which is not supported here; supported are {known}, in their roles."
    return ApiError(400, message, code="unsupported_parameter", param=where)


def _text(block: _Block) -> str:
    if block.content.get("type") != "text":
        raise _unsupported(block)
    return _string(block, "text")


def _string(block: _Block, key: str) -> str:
    value = block.content.get(key)
    if not isinstance(value, str):
        raise invalid(f"{block.where}.{key}", "must be a text")
    return value


def _name(block: _Block, key: str) -> str:
    value = _string(block, key)
    if not value:
        raise invalid(f"{block.where}.{key}", "must not be empty")
    return value
