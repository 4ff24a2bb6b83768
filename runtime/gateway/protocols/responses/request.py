"""Pure: requests of the Responses API as chat completions.

Parameters are checked under their own names. What needs memory between requests, or a tool that OpenAI runs itself, is
refused by name; hints that change no answer here are taken and told back; names of the Chat Completions API are refused
with the name that they have in this one, as OpenAI does it. Everything else goes to the endpoint as it is: engines
have parameters of their own (`top_k`, `seed`, `stop`, ...). Read in openai-python
`types/responses/response_create_params.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.gateway.bodies import Body, invalid, read_document
from runtime.gateway.protocols.responses.document import Head
from runtime.gateway.protocols.responses.items import messages_of, unsupported
from runtime.gateway.protocols.translation import openai_body

MOST_TOP_LOGPROBS = 20
_MOST_METADATA = 16
_LONGEST_KEY, _LONGEST_VALUE = 64, 512
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    {
        *("code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results"),
        *("message.input_image.image_url", _LOGPROBS, "reasoning.encrypted_content"),
        *("web_search_call.action.sources", "web_search_call.results"),
    }
)
"""What clients may ask to have included; for all but one there is never anything to include."""
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARIES = ("auto", "concise", "detailed")
_LEVELS = ("low", "medium", "high")

_STATEFUL: Mapping[str, str] = {
    "previous_response_id": "names a response that is kept nowhere: this API is stateless, send the whole conversation",
    "conversation": "names a conversation that is kept nowhere: this API is stateless, send the whole conversation",
    "prompt": "names a template that is kept nowhere: send its text as 'instructions'",
    "context_management": "is not supported: conversations are read as they are sent",
    "moderation": "is not supported",
}
_MOVED: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
    "logprobs": "include",
}
"""Parameters of the Chat Completions API by what says the same here."""


@dataclass(frozen=True, slots=True)
class _Type:
    accepts: Callable[[Any], bool]
    description: str


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_top(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_TOP_LOGPROBS


_TYPES: Mapping[str, _Type] = {
    "instructions": _Type(_is_text, "a text"),
    "max_output_tokens": _Type(_is_count, "a whole number of at least 1"),
    "max_tool_calls": _Type(_is_count, "a whole number of at least 1"),
    "temperature": _Type(_is_number, "a number"),
    "top_p": _Type(_is_number, "a number"),
    "top_logprobs": _Type(_is_top, f"a whole number from 0 to {MOST_TOP_LOGPROBS}"),
    "parallel_tool_calls": _Type(_is_bool, "true or false"),
    "stream": _Type(_is_bool, "true or false"),
    "stream_options": _Type(_is_object, "an object"),
    "store": _Type(_is_bool, "true or false"),
    "background": _Type(_is_bool, "true or false"),
    "text": _Type(_is_object, "an object"),
    "reasoning": _Type(_is_object, "an object"),
    "tools": _Type(lambda value: isinstance(value, list), "a list"),
    "include": _Type(lambda value: isinstance(value, list), "a list"),
    "metadata": _Type(_is_object, "an object"),
    "user": _Type(_is_text, "a text"),
    "safety_identifier": _Type(_is_text, "a text"),
    "prompt_cache_key": _Type(_is_text, "a text"),
    "prompt_cache_retention": _Type(_is_text, "a text"),
    "prompt_cache_options": _Type(_is_object, "an object"),
    "service_tier": _Type(_is_text, "a text"),
    "truncation": _Type(_is_text, "a text"),
}
_OURS = frozenset({*_TYPES, "model", "input", "tool_choice"})
"""Parameters that are read here; all others are passed on."""


def parse_response(raw: bytes, response_id: str, created_at: int) -> tuple[Body, Head]:
    """Return a request as a chat completion, and what its answer tells back; raises `ApiError` with status 400.

    `response_id` is that of the answer; `created_at` is in seconds since the epoch.
    """
    asked = {key: value for key, value in read_document(raw).items() if value is not None}
    _refuse(asked)
    for key, wanted in _TYPES.items():
        if key in asked and not wanted.accepts(asked[key]):
            raise invalid(key, f"must be {wanted.description}")
    if "input" not in asked:
        raise invalid("input", "must be a text or a list of items")
    if asked.get("background"):
        raise unsupported("background", "cannot be true: nothing is kept to be fetched later")
    if asked.get("truncation", "disabled") != "disabled":
        raise unsupported("truncation", "must be 'disabled': no item is left out without the client's knowledge")
    is_stream = asked.get("stream", False)
    if "stream_options" in asked and not is_stream:
        raise invalid("stream_options", "is for streams only: 'stream' is not true")
    _check_metadata(asked.get("metadata", {}))
    document: dict[str, Any] = {key: value for key, value in asked.items() if key not in _OURS}
    document["model"] = asked.get("model")
    messages = messages_of(asked["input"])
    if asked.get("instructions"):
        messages.insert(0, {"role": "system", "content": asked["instructions"]})
    document["messages"] = messages
    if "max_output_tokens" in asked:
        # The older name: every engine knows it.
        document["max_tokens"] = asked["max_output_tokens"]
    document |= {key: asked[key] for key in ("temperature", "top_p") if key in asked}
    document |= _logprobs(asked)
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.get("tools", ()))]
    document |= _tools(tools, asked)
    text = asked.get("text", {})
    document |= _format(text)
    reasoning = asked.get("reasoning", {})
    if _one_of(reasoning, "effort", _EFFORTS, "reasoning"):
        document["reasoning_effort"] = reasoning["effort"]
    for key in ("summary", "generate_summary"):
        _one_of(reasoning, key, _SUMMARIES, "reasoning")
    body = openai_body(document, is_stream=is_stream)
    return body, Head(response_id, created_at, body.model, asked, tools)


def _refuse(asked: Mapping[str, Any]) -> None:
    for key in asked:
        if key in _STATEFUL:
            raise unsupported(key, _STATEFUL[key])
        if key in _MOVED:
            raise unsupported(key, f"is not a parameter of the Responses API: use '{_MOVED[key]}'")
    if asked.get("n", 1) != 1:
        raise unsupported("n", "must be 1: a response is one answer")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > _MOST_METADATA:
        raise invalid("metadata", f"must have at most {_MOST_METADATA} keys")
    for key, value in metadata.items():
        if len(key) > _LONGEST_KEY:
            raise invalid("metadata", f"must have keys of at most {_LONGEST_KEY} characters")
        if not isinstance(value, str) or len(value) > _LONGEST_VALUE:
            raise invalid(f"metadata.{key}", f"must be a text of at most {_LONGEST_VALUE} characters")


def _logprobs(asked: Mapping[str, Any]) -> dict[str, Any]:
    included = asked.get("include", ())
    for index, name in enumerate(included):
        if not isinstance(name, str) or name not in _INCLUDABLE:
            raise invalid(f"include[{index}]", f"must be one of {', '.join(sorted(_INCLUDABLE))}")
    top = asked.get("top_logprobs", 0)
    if not top and _LOGPROBS not in included:
        return {}
    return {"logprobs": True, **({"top_logprobs": top} if top else {})}


def _tool(tool: object, where: str) -> dict[str, Any]:
    """Return a tool as responses tell it: with every key that it can have."""
    if not isinstance(tool, dict):
        raise invalid(where, "must be an object")
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise invalid(f"{where}.type", "must be a text")
    if kind != "function":
        raise unsupported(f"{where}.type", f"is '{kind}', which is not supported: only 'function' is")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise invalid(f"{where}.name", "must be a text that is not empty")
    for key, wanted in (("description", str), ("parameters", dict), ("strict", bool)):
        if tool.get(key) is not None and not isinstance(tool[key], wanted):
            name = {str: "a text", dict: "an object", bool: "true or false"}[wanted]
            raise invalid(f"{where}.{key}", f"must be {name}")
    given = {key: tool.get(key) for key in ("description", "parameters", "strict")}
    return {"type": "function", "name": tool["name"], **given}


def _tools(tools: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a chat that say which functions may, or must, be called."""
    choice = asked.get("tool_choice", "auto")
    names = {tool["name"] for tool in tools}
    told: object = choice
    match choice:
        case "auto" | "none" | "required":
            pass
        case {"type": "function"}:
            name = choice.get("name")
            if not isinstance(name, str) or name not in names:
                raise invalid("tool_choice.name", "must be the name of one of the tools")
            told = {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools"}:
            names, told = _allowed(choice, names)
        case {"type": str(kind)}:
            raise unsupported("tool_choice.type", f"is '{kind}', which is not supported")
        case _:
            raise invalid("tool_choice", "must be 'auto', 'none', 'required' or an object with a type")
    if not tools:
        if told == "required":
            raise invalid("tool_choice", "must not be 'required': there are no tools")
        return {}
    made: dict[str, Any] = {"tools": [_chat_tool(tool) for tool in tools if tool["name"] in names]}
    if told != "auto":
        made["tool_choice"] = told
    if asked.get("parallel_tool_calls") is False:
        made["parallel_tool_calls"] = False
    return made


def _allowed(choice: Mapping[str, Any], names: set[str]) -> tuple[set[str], str]:
    """Return which of the tools may be called, and how."""
    mode, allowed = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise invalid("tool_choice.mode", "must be 'auto' or 'required'")
    if not isinstance(allowed, list) or not allowed:
        raise invalid("tool_choice.tools", "must be a list with at least one tool")
    chosen: set[str] = set()
    for index, tool in enumerate(allowed):
        name = tool.get("name") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(name, str) or name not in names:
            raise invalid(f"tool_choice.tools[{index}]", "must name one of the tools, with the type 'function'")
        chosen.add(name)
    return chosen, mode


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in tool.items() if key != "type" and value is not None}
    return {"type": "function", "function": said}


def _format(text: Mapping[str, Any]) -> dict[str, Any]:
    _one_of(text, "verbosity", _LEVELS, "text")
    wanted = text.get("format")
    if wanted is None:
        return {}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    match kind:
        case "text":
            return {}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            if not isinstance(wanted.get("schema"), dict):
                raise invalid("text.format.schema", "must be an object: a JSON Schema")
            if not isinstance(wanted.get("name"), str) or not wanted["name"]:
                raise invalid("text.format.name", "must be a text that is not empty")
            keys = ("name", "description", "schema", "strict")
            said = {key: wanted[key] for key in keys if wanted.get(key) is not None}
            return {"response_format": {"type": "json_schema", "json_schema": said}}
        case _:
            raise invalid("text.format.type", "must be 'text', 'json_object' or 'json_schema'")


def _one_of(document: Mapping[str, Any], key: str, values: Sequence[str], where: str) -> bool:
    """Tell whether an optional key is there; raises `ApiError` where it says something else than it may."""
    value = document.get(key)
    if value is not None and value not in values:
        raise invalid(f"{where}.{key}", f"must be one of {', '.join(values)}")
    return value is not None
