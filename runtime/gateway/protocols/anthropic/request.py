"""Pure: the body of Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens` in OpenAI's words.

Shapes: anthropic-sdk-python 0.121, `types/message_create_params.py` and `types/message_count_tokens_params.py`. What
steers Anthropic's own service is let pass and changes nothing here: `cache_control`, `service_tier`, `inference_geo`,
`context_management`, and fields that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.gateway.bodies import Body, invalid, read_document
from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.anthropic.content import messages_of, system_of
from runtime.gateway.protocols.anthropic.tools import tools_of
from runtime.gateway.protocols.translation import openai_body

LOW_BUDGET = 4096
MEDIUM_BUDGET = 16384
"""Tokens for thinking up to which the effort is low, and medium. The servers here know efforts and no budgets."""

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Anthropic's (`types/output_config_param.py`), and those that every server with efforts has."""
_ELSEWHERE = ("mcp_servers", "container")
"""Parameters that ask for other servers of Anthropic's."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a message."""

    body: Body
    """In OpenAI's words."""
    shows_thinking: bool
    """Whether the client has asked for thinking. Others take the first block of the answer for its text."""
    stops: tuple[str, ...]
    """Texts that end the answer."""
    prefill: str = ""
    """The beginning of the answer, which the client has written itself."""


def parse_messages(raw: bytes) -> Wanted:
    """Read the body of `/v1/messages`; raises `ApiError` with status 400."""
    document = read_document(raw)
    made = _conversation(document)
    for key in _ELSEWHERE:
        if document.get(key):
            raise ApiError(400, f"'{key}' is not supported here.", code="unsupported_parameter", param=key)
    if document.get("max_tokens") is None:
        raise invalid("max_tokens", "is required: a whole number of at least 1")
    stops = _stops(document.get("stop_sequences"))
    if stops:
        made["stop"] = list(stops)
    for key in ("max_tokens", "temperature", "top_p", "top_k"):
        if document.get(key) is not None:
            made[key] = document[key]
    user = _user(document.get("metadata"))
    if user:
        made["user"] = user
    is_stream = document.get("stream")
    if is_stream is not None and not isinstance(is_stream, bool):
        raise invalid("stream", "must be true or false")
    prefill = made["messages"][-1]["content"] if "continue_final_message" in made else ""
    return Wanted(openai_body(made, is_stream=bool(is_stream)), _shows_thinking(document), stops, prefill)


def parse_count(raw: bytes) -> Body:
    """Read the body of `/v1/messages/count_tokens`, whose `max_tokens` nobody needs; raises `ApiError`, status 400."""
    return openai_body(_conversation(read_document(raw)), is_stream=False)


def _conversation(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the prompt is made of, and what changes how it is written."""
    messages = messages_of(document.get("messages"))
    system = system_of(document.get("system"))
    if system:
        messages.insert(0, {"role": "system", "content": system})
    made: dict[str, Any] = {"model": document.get("model"), "messages": messages, **tools_of(document)}
    if messages[-1]["role"] == "assistant":
        # The answer goes on where the last message ends: vLLM's words for it, which our worker knows.
        made |= {"continue_final_message": True, "add_generation_prompt": False}
    config = document.get("output_config")
    if config is not None and not isinstance(config, dict):
        raise invalid("output_config", "must be an object")
    older = document.get("output_format")  # its name while it was new
    if older is not None:
        made["response_format"] = _format(older, "output_format")
    wanted = (config or {}).get("format")
    if wanted is not None:
        made["response_format"] = _format(wanted, "output_config.format")
    effort = _effort(document.get("thinking"), (config or {}).get("effort"))
    if effort is not None:
        made["reasoning_effort"] = effort
    return made


def _format(wanted: object, where: str) -> dict[str, Any]:
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise invalid(f"{where}.type", "must be json_schema")
    if not isinstance(wanted.get("schema"), dict):
        raise invalid(f"{where}.schema", "must be a JSON Schema, which is an object")
    named = {"name": "answer", "strict": True, "schema": wanted["schema"]}
    return {"type": "json_schema", "json_schema": named}


def _effort(thinking: object, effort: object) -> str | None:
    """Return OpenAI's `reasoning_effort`; None where the client leaves it to the model."""
    if effort is not None and (not isinstance(effort, str) or effort not in _EFFORTS):
        raise invalid("output_config.effort", f"must be one of {', '.join(_EFFORTS)}")
    if thinking is None:
        return None
    named = None if effort is None else _EFFORTS[effort]
    if not isinstance(thinking, dict):
        raise invalid("thinking", "must be an object with a type")
    if thinking.get("display") not in (None, "summarized", "omitted"):
        raise invalid("thinking.display", "must be summarized or omitted")
    match thinking.get("type"):
        case "disabled":
            return "none"
        case "adaptive":
            return named
        case "enabled":
            budget = thinking.get("budget_tokens")
            if type(budget) is not int or budget < 1:
                raise invalid("thinking.budget_tokens", "must be a whole number of at least 1")
            return named or ("low" if budget <= LOW_BUDGET else "medium" if budget <= MEDIUM_BUDGET else "high")
        case _:
            raise invalid("thinking.type", "must be one of enabled, disabled, adaptive")


def _shows_thinking(document: Mapping[str, Any]) -> bool:
    thinking = document.get("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") not in ("enabled", "adaptive"):
        return False
    return thinking.get("display") != "omitted"


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise invalid("stop_sequences", "must be a list of texts, none of them empty")
    return tuple(value)


def _user(metadata: object) -> str | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise invalid("metadata", "must be an object")
    user = metadata.get("user_id")
    if user is not None and not isinstance(user, str):
        raise invalid("metadata.user_id", "must be a text")
    return user
