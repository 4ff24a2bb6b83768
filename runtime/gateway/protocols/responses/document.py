"""Pure: the documents of the Responses API: a response and the items of its output.

A response says back what was asked for. `store` is always false, whatever was asked: nothing is kept. Shapes:
openai-python `types/responses/response.py`, `response_output_message.py`, `response_function_tool_call.py`,
`response_reasoning_item.py`, `response_usage.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["in_progress", "completed", "incomplete", "failed"]

FAILURES = frozenset({"context_length_exceeded", "rate_limit_exceeded"})
"""Error codes by which clients tell what they can do about a failure; every other one is `server_error`."""
_INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Head:
    """What a response says of itself and of its request, from its first event on."""

    id: str
    created_at: int
    """Seconds since the epoch."""
    model: str
    asked: Mapping[str, Any]
    """The request, without what is null."""
    tools: Sequence[Mapping[str, Any]]

    def item_id(self, kind: str, index: int) -> str:
        """Return the id of the item at a place of the output; `kind` is what the ids of its type begin with."""
        return f"{kind}_{self.id.removeprefix('resp_')}{index:02x}"

    def response(
        self,
        status: Status,
        output: Sequence[Mapping[str, Any]] = (),
        *,
        usage: Mapping[str, Any] | None = None,
        reason: str | None = None,
        error: Mapping[str, Any] | None = None,
        completed_at: int | None = None,
    ) -> dict[str, Any]:
        """Return the whole document; `reason` says why it is incomplete."""
        asked, text, reasoning = self.asked, self.asked.get("text", {}), self.asked.get("reasoning", {})
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "completed_at": completed_at,
            "error": error,
            "incomplete_details": None if reason is None else {"reason": reason},
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": asked.get("max_tool_calls"),
            "model": self.model,
            "output": list(output),
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "prompt_cache_key": asked.get("prompt_cache_key"),
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": asked.get("safety_identifier"),
            "service_tier": asked.get("service_tier", "default"),
            "store": False,
            "temperature": asked.get("temperature"),
            "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": list(self.tools),
            "top_logprobs": asked.get("top_logprobs", 0),
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "usage": usage,
            "user": asked.get("user"),
            "metadata": asked.get("metadata", {}),
        }


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a part of a message that is text."""
    return {"type": "output_text", "annotations": [], "logprobs": list(logprobs), "text": text}


def refusal_part(text: str) -> dict[str, Any]:
    """Return a part of a message with which the model refuses to answer."""
    return {"type": "refusal", "refusal": text}


def reasoning_part(text: str) -> dict[str, Any]:
    """Return the content of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def message_item(item_id: str, status: Status, parts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a message of the assistant."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def reasoning_item(item_id: str, status: Status, parts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return reasoning, as the model wrote it: there is nobody here who could sum it up or encrypt it."""
    return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": list(parts)}


def call_item(item_id: str, status: Status, call_id: str, name: str, arguments: str = "") -> dict[str, Any]:
    """Return a call of a function."""
    call = {"id": item_id, "type": "function_call", "status": status}
    return {**call, "call_id": call_id, "name": name, "arguments": arguments}


def ending(finish_reason: object) -> tuple[Status, str | None]:
    """Return the status of a response whose answer ended like that, and why it is incomplete where it is."""
    reason = _INCOMPLETE.get(finish_reason) if isinstance(finish_reason, str) else None
    return ("completed", None) if reason is None else ("incomplete", reason)


def failure(message: str, code: str | None) -> dict[str, Any]:
    """Return the error of a response that failed."""
    return {"code": code if code in FAILURES else "server_error", "message": message}


def usage_of(usage: object) -> dict[str, Any] | None:
    """Return what a response took in tokens; `usage` is that of a chat completion. None where that says nothing.

    Where somebody has estimated it, it is still marked as estimated.
    """
    if not isinstance(usage, dict):
        return None
    given, made = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    read, wrote = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    document: dict[str, Any] = {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": _count(read, "cached_tokens"), "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": _count(wrote, "reasoning_tokens")},
        "total_tokens": given + made,
    }
    if usage.get("estimated") is True:
        document["estimated"] = True
    return document


def logprobs_of(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the log probabilities of the tokens of a choice, as responses have them."""
    found = choice.get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    return [
        {**_token(token), "top_logprobs": [_token(other) for other in _objects(token.get("top_logprobs"))]}
        for token in _objects(content)
    ]


def _token(said: Mapping[str, Any]) -> dict[str, Any]:
    text = said.get("token")
    written = said.get("bytes")
    encoded = written if isinstance(written, list) else list(str(text).encode(errors="replace"))
    return {"token": text, "bytes": encoded, "logprob": said.get("logprob")}


def _objects(value: object) -> Iterable[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _count(document: object, key: str) -> int:
    value = document.get(key) if isinstance(document, dict) else None
    return value if type(value) is int and value >= 0 else 0
