"""Pure: OpenAI's answer as Anthropic's message.

Shapes: anthropic-sdk-python 0.121, `types/message.py`, `types/usage.py`, `types/stop_reason.py`. Which stop sequence
ended an answer OpenAI's answers do not tell; vLLM (`stop_reason` of a choice), SGLang (`matched_stop`) and our worker
do. Where nobody does, such an answer has ended its turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.bodies import decode
from runtime.gateway.protocols.anthropic.request import Wanted
from runtime.gateway.usage import estimated, prompt_tokens

SIGNATURE = "b3JjaGVzdHJhdGU="
"""What marks thinking as made here. Anthropic's own is a proof that only its servers read; some clients leave thinking
without one out of the next request, where the model needs it to go on."""

_STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class Stop(NamedTuple):
    """Why an answer has ended."""

    reason: str
    sequence: str | None


def stop_of(finish: object, matched: object, stops: tuple[str, ...], *, has_calls: bool, is_refused: bool) -> Stop:
    """Return Anthropic's reason for OpenAI's; `matched` is what the endpoint says that it has found in the answer."""
    if is_refused:
        return Stop("refusal", None)
    if isinstance(matched, str) and matched in stops and finish == "stop":
        return Stop("stop_sequence", matched)
    if has_calls and finish == "stop":
        return Stop("tool_use", None)
    return Stop(_STOP_REASONS.get(finish, "end_turn") if isinstance(finish, str) else "end_turn", None)


def matched_stop(choice: Mapping[str, Any]) -> object:
    """Return which stop sequence a choice says that has ended it."""
    return choice.get("stop_reason") or choice.get("matched_stop")


def usage_of(said: object, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return Anthropic's usage, whose `input_tokens` are those that were not in a cache; an estimate keeps its mark.

    `said` is OpenAI's `usage`, `asked` the request, for an answer without one.
    """
    usage = said if isinstance(said, dict) else estimated(prompt_tokens(asked), 0)
    prompt = _count(usage.get("prompt_tokens"))
    cached = min(_count(_details(usage, "prompt_tokens_details").get("cached_tokens")), prompt)
    made: dict[str, Any] = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": _count(usage.get("completion_tokens")),
    }
    thoughts = _details(usage, "completion_tokens_details").get("reasoning_tokens")
    if thoughts is not None:
        made["output_tokens_details"] = {"thinking_tokens": _count(thoughts)}
    if usage.get("estimated"):
        made["estimated"] = True
    return made


def message_of(raw: bytes, wanted: Wanted, message_id: str) -> bytes:
    """Return the message for OpenAI's whole document; raises `BadAnswerError`, or what `attempt.ODD_ANSWER` names."""
    document = json.loads(raw)
    choice = document["choices"][0]
    said, calls = choice["message"], choice["message"].get("tool_calls") or []
    content: list[dict[str, Any]] = []
    thoughts = reasoning_of(said)
    if thoughts and wanted.shows_thinking:
        content.append({"type": "thinking", "thinking": thoughts, "signature": SIGNATURE})
    text = "".join(part for part in (said.get("content"), said.get("refusal")) if isinstance(part, str))
    if "timings" in document:
        # llama.cpp's server (seen in its build 11549) gives back the beginning that it was given; its streams do not.
        text = text.removeprefix(wanted.prefill)
    if text:
        content.append({"type": "text", "text": text})
    content.extend(_tool_use(call, number, message_id) for number, call in enumerate(calls))
    is_refused = bool(said.get("refusal"))
    stop = stop_of(
        choice.get("finish_reason"), matched_stop(choice), wanted.stops, has_calls=bool(calls), is_refused=is_refused
    )
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": wanted.body.model,
        "content": content,
        "stop_reason": stop.reason,
        "stop_sequence": stop.sequence,
        "usage": usage_of(document.get("usage"), wanted.body.document),
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def reasoning_of(said: Mapping[str, Any]) -> str:
    """Return the thinking in a message or a delta: `reasoning_content`, or `reasoning` as newer servers call it."""
    found = said.get("reasoning_content") or said.get("reasoning")
    return found if isinstance(found, str) else ""


def call_id(given: object, number: int, message_id: str) -> str:
    """Return the id of a call: the endpoint's, or one of ours where it gives none."""
    return given if isinstance(given, str) and given else f"toolu_{message_id.removeprefix('msg_')}_{number}"


def _tool_use(call: Mapping[str, Any], number: int, message_id: str) -> dict[str, Any]:
    function = call["function"]
    name, arguments = function["name"], function.get("arguments")
    if not isinstance(name, str) or not name:
        raise BadAnswerError("a call without a name")
    return {
        "type": "tool_use",
        "id": call_id(call.get("id"), number, message_id),
        "name": name,
        "input": _input(arguments),
    }


def _input(arguments: object) -> dict[str, Any]:
    """Return the arguments of a call as an object.

    What a model has written wrongly is put into one as it is, under the key that Anthropic's page on fine-grained tool
    streaming proposes, so that the client can tell the model.
    """
    if isinstance(arguments, dict):
        # Written anew to be read strictly: what is no JSON would reach the client.
        arguments = json.dumps(arguments)
    if not arguments:
        return {}
    if not isinstance(arguments, str):
        raise BadAnswerError("arguments of a call that are neither a text nor an object")
    try:
        found = decode(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def _details(usage: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = usage.get(key)
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
