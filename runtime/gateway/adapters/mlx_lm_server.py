"""Pure: what stock `mlx_lm.server` may be sent.

Its handler thread checks little and its generation thread checks nothing: a list of prompts, an empty prompt or a stop
that is no text ends generation for good, while `/health` goes on saying ok. Other parameters name files, models to
download or URLs to fetch; `n`, `tool_choice` and `response_format` are accepted and ignored (read in mlx-lm 0.32). So a
request is made anew from what is known to work, and what it cannot do is refused by name.

It is always asked for a stream: without one it generates to the end for a client that has left, and an answer that
broke off looks like one that is complete. Its streams carry no log probabilities, so these are refused too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.gateway.adapters.refusals import HARMLESS, refused
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body
from runtime.gateway.errors import ApiError

ENGINE = "mlx-lm-server"
LARGEST_SEED = 2**63 - 1
LARGEST_TOP_K = 1000
"""Less than any vocabulary has: as many as that end generation for good."""

_NEVER: Mapping[str, object] = {"n": 1, "best_of": 1, "tool_choice": "auto", "parallel_tool_calls": True}
"""Parameters that it ignores, with the only value for which that makes no difference."""


@dataclass(frozen=True, slots=True)
class _Rule:
    accepts: Callable[[Any], bool]
    description: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and low <= value <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_stop(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and text for text in texts)


def _asks_for_usage(value: object) -> bool:
    return isinstance(value, dict) and all(type(value.get(key, False)) is bool for key in ("include_usage",))


def _is_thinking(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"enable_thinking"} and type(value["enable_thinking"]) is bool


_COUNT = _Rule(_whole(1, 2**31), "a whole number of at least 1")
_SHARED: Mapping[str, _Rule] = {
    "stream": _Rule(lambda value: isinstance(value, bool), "true or false"),
    "stream_options": _Rule(_asks_for_usage, "an object with `include_usage`"),
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "temperature": _Rule(_between(0, 100), "a number of at least 0"),
    "top_p": _Rule(_between(0, 1), "a number from 0 to 1"),
    "top_k": _Rule(_whole(0, LARGEST_TOP_K), f"a whole number from 0 to {LARGEST_TOP_K}"),
    "min_p": _Rule(_between(0, 1), "a number from 0 to 1"),
    "repetition_penalty": _Rule(_between(0, 100), "a number of at least 0"),
    "presence_penalty": _Rule(_between(-2, 2), "a number from -2 to 2"),
    "frequency_penalty": _Rule(_between(-2, 2), "a number from -2 to 2"),
    "seed": _Rule(_whole(0, LARGEST_SEED), "a whole number of at least 0"),
    "stop": _Rule(_is_stop, "a text or a list of texts, none of them empty"),
    # An empty one only: a token number outside of the vocabulary, which is not known here, ends the whole process.
    "logit_bias": _Rule(lambda value: value == {}, "empty"),
}
_CHAT: Mapping[str, _Rule] = {
    **_SHARED,
    "tools": _Rule(
        lambda value: isinstance(value, list) and all(isinstance(tool, dict) for tool in value), "a list of objects"
    ),
    # Other arguments of the template are its author's business, and may end the generation thread.
    "chat_template_kwargs": _Rule(_is_thinking, "an object with nothing but `enable_thinking`, true or false"),
}


def adapt(path: str, body: Body) -> Body:
    """Return the request as the engine may have it; raises `ApiError` with status 400 for what it cannot do."""
    is_chat = path.endswith("/chat/completions")
    subject = "messages" if is_chat else "prompt"
    rules = _CHAT if is_chat else _SHARED
    made: dict[str, Any] = {"model": body.model}
    for key, value in body.document.items():
        if value is None or key in HARMLESS or key in ("model", subject):
            continue
        if key in rules:
            if not rules[key].accepts(value):
                raise _refused(key, f"must be {rules[key].description}")
            made[key] = value
        elif not _changes_nothing(key, value):
            raise _refused(key, "is not supported", "unsupported_parameter")
    if not body.is_stream:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    elif not (made.get("stream_options") or {}).get("include_usage"):
        # It looks the key up without asking whether it is there.
        made.pop("stream_options", None)
    if is_chat:
        made["messages"] = [
            _message(each, f"messages[{index}]") for index, each in enumerate(body.document["messages"])
        ]
    else:
        made["prompt"] = _prompt(body.document["prompt"])
    try:
        raw = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair: JSON can say it, the engine's tokenizer cannot take it.
        raise _refused(subject, "holds characters that are no Unicode text") from None
    return Body(raw, made, body.model, body.is_stream, is_collected=not body.is_stream)


def adapt_ask(ask: Ask) -> Ask:
    """Return the request as the engine may have it; raises `ApiError` with status 400 for what it cannot do."""
    if ask.reading is not None:
        raise refused(ENGINE, "input", "cannot be answered: it serves chat only", "unsupported_parameter")
    return replace(ask, body=adapt(ask.path, ask.body))


def _changes_nothing(key: str, value: object) -> bool:
    if key == "response_format":
        return value == {"type": "text"}
    if key in ("logprobs", "echo"):
        return value is False
    return key in _NEVER and value == _NEVER[key] and type(value) is type(_NEVER[key])


def _prompt(prompt: object) -> str:
    if not isinstance(prompt, str) or not prompt:
        raise _refused("prompt", "must be one text that is not empty")
    return prompt


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    made = {key: value for key, value in message.items() if key in _MESSAGE_KEYS and value is not None}
    if made["role"] == "developer":
        made["role"] = "system"
    content = made.get("content")
    if isinstance(content, list):
        made["content"] = "".join(_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if "tool_calls" in made:
        made["tool_calls"] = _tool_calls(made["tool_calls"], f"{where}.tool_calls")
    return made


_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"})


def _text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    # Images would be fetched by the engine, from wherever their URLs point.
    raise _refused(where, "must be a text; other parts are not supported")


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _refused(where, "must be a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _refused(f"{where}[{index}].function", "must be an object with a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments and not _is_json_object(arguments):
            raise _refused(f"{where}[{index}].function.arguments", "must be a JSON object")
    return calls


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _refused(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return refused(ENGINE, param, message, code)
