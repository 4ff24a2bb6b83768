"""Pure: content and tool calls in OpenAI's shapes, whole and as deltas."""

from collections.abc import Sequence
from typing import Any

from runtime.worker.tools.stream import ArgumentsPart, CallPart, Part, Text


def message_of(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the message of a whole answer; its content is null beside calls alone."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    calls = [_call(part) for part in parts if isinstance(part, CallPart)]
    for part in parts:
        if isinstance(part, ArgumentsPart):
            calls[part.index]["function"]["arguments"] += part.text
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def delta_of(part: Part) -> dict[str, Any]:
    """Return the delta of one part of a streamed answer."""
    match part:
        case Text(text):
            return {"content": text}
        case CallPart():
            return {"tool_calls": [{"index": part.index, **_call(part)}]}
        case ArgumentsPart(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _call(part: CallPart) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
