"""Pure: several answers made one, and an answer that is there as a whole made the stream that a client waits for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.sse import DONE

_TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
"""The texts of a message, in the order in which models write them."""


def choice_of(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an answer and its first choice; raises `BadAnswerError` where it has none that can be read."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError("no JSON") from error
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadAnswerError("no choice")
    if not isinstance(choices[0].get("message"), dict | None):
        raise BadAnswerError("a message that is no object")
    return document, choices[0]


def with_choice(document: Mapping[str, Any], choice: Mapping[str, Any]) -> bytes:
    """Return an answer with this one choice."""
    return _written({**document, "choices": [choice]})


def with_first_call(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice with at most one call."""
    message = choice.get("message")
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list) or len(calls) < 2:
        return choice
    return {**choice, "message": {**choice["message"], "tool_calls": calls[:1]}}


def joined(answers: Sequence[bytes], prompts: int = 1) -> bytes:
    """Return one answer with the choices of all, numbered in their order; raises `BadAnswerError`.

    The answers are to `prompts` prompts, as many to each. What was generated is summed; a prompt counts once, however
    many answers there are to it.
    """
    found = [choice_of(raw) for raw in answers]
    first = {key: value for key, value in found[0][0].items() if key != "usage"}
    choices = [{**choice, "index": index} for index, (_, choice) in enumerate(found)]
    usage = _usage([document.get("usage") for document, _ in found], max(1, len(answers) // prompts))
    return _written({**first, "choices": choices} | ({} if usage is None else {"usage": usage}))


def added(one: bytes, other: bytes) -> bytes:
    """Return the first answer with the usage of both: it took two tries."""
    document, choice = choice_of(one)
    usage = _usage([choice_of(other)[0].get("usage"), document.get("usage")], 1)
    return with_choice(document | ({} if usage is None else {"usage": usage}), choice)


def _usage(usages: Sequence[Any], each: int) -> dict[str, Any] | None:
    """Sum usages, of which `each` in a row are of one prompt; None where one is not there."""
    known = [usage for usage in usages if isinstance(usage, dict)]
    if len(known) < len(usages):
        return None
    prompt = sum(_count(usage, "prompt_tokens") for usage in known[::each])
    generated = sum(_count(usage, "completion_tokens") for usage in known)
    total: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    if any(usage.get("estimated") is True for usage in known):
        total["estimated"] = True
    for name, counted in (("prompt_tokens_details", known[::each]), ("completion_tokens_details", known)):
        details = [each_usage[name] for each_usage in counted if isinstance(each_usage.get(name), dict)]
        if len(details) == len(counted):
            total[name] = {key: sum(_count(part, key) for part in details) for part in details for key in part}
    return total


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int else 0


def streamed(raw: bytes, *, with_usage: bool) -> bytes:
    """Return an answer as the events of its stream, up to `[DONE]`; raises `BadAnswerError`.

    The shapes are those of OpenAI's reference, "The chat completion chunk object": the role comes first, a reason to
    finish once, and the usage, where it is asked for, in a last chunk without choices.
    """
    document, _ = choice_of(raw)
    is_chat = document.get("object") != "text_completion"
    common = {key: value for key, value in document.items() if key not in ("choices", "usage", "object")}
    common["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    pieces = [piece for choice in document["choices"] for piece in (_pieces(choice) if is_chat else [choice])]
    more = {"usage": None} if with_usage else {}
    events = [{**common, "choices": [piece], **more} for piece in pieces]
    if with_usage and document.get("usage") is not None:
        events.append({**common, "choices": [], "usage": document["usage"]})
    return b"".join(b"data: " + _written(event) + b"\n\n" for event in events) + DONE


def _pieces(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    message = choice.get("message") or {}
    index = choice.get("index", 0)
    deltas: list[dict[str, Any]] = [{"role": message.get("role") or "assistant", "content": ""}]
    deltas += [{name: message[name]} for name in _TEXTS if isinstance(message.get(name), str) and message[name]]
    for place, call in enumerate(message.get("tool_calls") or ()):
        deltas.append({"tool_calls": [{**call, "index": place}]})
    pieces: list[dict[str, Any]] = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    if choice.get("logprobs") is not None:
        pieces[min(1, len(pieces) - 1)]["logprobs"] = choice["logprobs"]
    return [*pieces, {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}]


def _written(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
