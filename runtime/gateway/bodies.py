"""Pure: request bodies: what is refused before anybody is asked, and the one change that is made to what passes."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.gateway.errors import ApiError

DEEPEST = 64
"""Levels of nesting: deeper documents exhaust the stacks of parsers further on."""
LONGEST_MODEL = 256

FORBIDDEN = frozenset(
    {
        *("api_base", "api_key", "api_type", "api_version", "base_url", "custom_llm_provider", "default_headers"),
        *("endpoint_url", "extra_body", "extra_headers", "extra_query", "fallbacks", "headers", "http_proxy"),
        *("litellm_params", "model_list", "proxies", "proxy", "upstream_url"),
    }
)
"""URLs, credentials and headers come from the stack files only. Other proxies take these from bodies, some of them
inside lists of fallbacks; a helper may be such a proxy."""
CHECKED = frozenset({"role", "content", "tool_calls"})
"""What is looked at in a message."""
_USUAL = CHECKED | {"name", "tool_call_id", "reasoning_content", "refusal"}
_MODEL = b'"model"'
_MODEL_KEY = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Body:
    """A request body that may be passed on."""

    raw: bytes
    document: Mapping[str, Any]
    model: str
    is_stream: bool
    """Whether the client wants a stream."""
    is_collected: bool = False
    """Whether the endpoint is asked for a stream although the client wants one document."""


def parse_chat(raw: bytes) -> Body:
    """Check the body of a chat completion; raises `ApiError` with status 400."""
    document = read_document(raw)
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(message, index)
    if raw.find(b'"developer"') >= 0 and any(message["role"] == "developer" for message in messages):
        # OpenAI's newer name of `system`, and the same to its own models; the templates of most others end at it.
        told = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
        document = {**document, "messages": told}
        raw = json.dumps(document, separators=(",", ":")).encode()
    return body_of(raw, document)


def parse_completion(raw: bytes) -> Body:
    """Check the body of a text completion; raises `ApiError` with status 400."""
    document = read_document(raw)
    if not _is_prompt(document.get("prompt")):
        raise invalid("prompt", "must be a text, a list of texts, or tokens, and not empty")
    return body_of(raw, document)


def with_model(body: Body, model: str) -> bytes:
    """Return the body asking for another model. Everything else keeps its bytes where that is provably the same."""
    if body.model == model:
        return body.raw
    # The word once in quotes means one key "model" in the whole document, unless another one is written with \\u
    # escapes, whose letters all begin with \\u006. Text inside strings has its quotes escaped and cannot match.
    raw = body.raw
    if raw.count(_MODEL) == 1 and b"\\u006" not in raw:
        written = _MODEL_KEY.match(raw, raw.index(_MODEL))
        if written is not None:
            return b'%b"model":%b%b' % (raw[: written.start()], _quoted(model), raw[written.end() :])
    return json.dumps({**body.document, "model": model}, separators=(",", ":")).encode()


@functools.lru_cache(1024)
def _quoted(model: str) -> bytes:
    """Write the name of a model, of which the files have some, as JSON."""
    return json.dumps(model).encode()


def invalid(param: str, message: str) -> ApiError:
    """Return the refusal of a parameter's value."""
    return ApiError(400, f"'{param}' {message}.", code="invalid_value", param=param)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
"""Reads JSON without what Python adds to it: NaN, infinity, and numbers that would become it. Raises `ValueError`."""


def read_document(raw: bytes) -> dict[str, Any]:
    """Parse a request body strictly; raises `ApiError` with status 400."""
    try:
        document = decode(raw.decode())
    except UnicodeDecodeError:
        raise ApiError(400, "The request body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        where = f"{error.msg}: line {error.lineno} column {error.colno}"
        raise ApiError(400, f"The request body is not valid JSON: {where}.", code="invalid_json") from None
    except ValueError:
        raise ApiError(400, "The request body is not valid JSON.", code="invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    # No document is deeper than it has opening brackets; most requests need no walk.
    if raw.count(b"{") + raw.count(b"[") > DEEPEST and _is_deeper(document, DEEPEST):
        raise _too_deep()
    return document


def _too_deep() -> ApiError:
    return ApiError(400, f"The request body is nested more than {DEEPEST} levels deep.", code="invalid_json")


_NESTING = frozenset({dict, list})


def _is_deeper(document: dict[str, Any], levels: int) -> bool:
    layer: list[Any] = [document]
    for _ in range(levels):
        layer = [child for node in layer for child in _nested(node)]
        if not layer:
            return False
    return True


def _nested(node: dict[str, Any] | list[Any]) -> list[Any]:
    """Return the objects and lists in one; a text of a million token numbers is passed over by their types alone."""
    values: Collection[Any] = node.values() if isinstance(node, dict) else node
    return [] if _NESTING.isdisjoint(map(type, values)) else [child for child in values if type(child) in _NESTING]


def body_of(raw: bytes, document: dict[str, Any]) -> Body:
    """Check what the bodies of all kinds have in common; raises `ApiError` with status 400."""
    for key, value in document.items():
        if key not in KNOWN:
            _check_name(key)
        elif key in FORBIDDEN:
            raise ApiError(400, f"'{key}' is not accepted in requests.", code="unsupported_parameter", param=key)
        elif value is not None and key in _TYPES and not _TYPES[key].accepts(value):
            raise invalid(key, f"must be {_TYPES[key].description}")
    _check_conflicts(document)
    if document.get("tools") is not None or document.get("tool_choice") is not None:
        _check_tools(document)
    model = document.get("model")
    if not isinstance(model, str) or not model or len(model) > LONGEST_MODEL:
        raise invalid("model", "must name a role, an alias or a model")
    return Body(raw, document, model, document.get("stream") is True)


def _check_name(key: str) -> None:
    """Refuse a parameter that engines in Go read as another one, which the last one of the two overrides.

    Go's encoding/json knows keys without regard to case, and takes two letters beyond ASCII for `s` and `k`
    (`foldName` in its fold.go). What passed as unknown would change the model, or make a stream, behind the checks.
    """
    plain = _plain(key)
    if plain in KNOWN:
        raise _misspelt(key, plain)


def _plain(key: str) -> str:
    return key.lower().replace("\u017f", "s")


def _misspelt(where: str, plain: str) -> ApiError:
    message = f"'{where}' is not accepted in requests: some engines read it as '{plain}'."
    return ApiError(400, message, code="unsupported_parameter", param=where)


def check_url(url: object, where: str) -> None:
    """Refuse the URL of an image, or of another file, that an endpoint would fetch: from inside of the network.

    Raises `ApiError` with status 400, naming `where`.
    """
    if not isinstance(url, str):
        raise invalid(where, "must be a text: a data: URL")
    if url[:5].lower() != "data:":
        raise invalid(where, "must be a data: URL: nothing is fetched from other addresses")


def _check_message(message: object, index: int) -> None:
    if not isinstance(message, dict):
        raise invalid(f"messages[{index}]", "must be an object")
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise invalid(f"messages[{index}].role", "must be a text")
    if not message.keys() <= _USUAL:
        for key in message.keys() - CHECKED:
            if _plain(key) in CHECKED:
                raise _misspelt(f"messages[{index}].{key}", _plain(key))
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        if not isinstance(content, list):
            raise invalid(f"messages[{index}].content", "must be a text or a list of parts")
        for number, part in enumerate(content):
            _check_part(part, f"messages[{index}].content[{number}]")
    if message.get("tool_calls") is not None:
        _check_calls(message["tool_calls"], f"messages[{index}].tool_calls")


def _check_part(part: object, where: str) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise invalid(where, "must be a text or an object")
    if part.get("type") == "text":
        if not isinstance(part.get("text"), str):
            raise invalid(f"{where}.text", "must be a text")
        if len(part) == 2:
            return
    # `image_url` is OpenAI's; vLLM fetches `video_url` and `audio_url` too, needs no `type`, and passes over one of
    # `text` where it finds a `uuid`.
    if part.get("type") == "image_url" and part.get("image_url") is None:
        raise invalid(f"{where}.image_url", "must be a data: URL")
    for key, value in part.items():
        if value is not None and _plain(key).endswith("_url"):
            check_url(value.get("url") if isinstance(value, dict) else value, f"{where}.{key}")
            for other in value if isinstance(value, dict) else ():
                if other != "url" and _plain(other) == "url":
                    raise _misspelt(f"{where}.{key}.{other}", "url")


def _check_calls(calls: object, where: str) -> None:
    if not isinstance(calls, list):
        raise invalid(where, "must be a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}[{index}].function", "must be an object with a name")


def _check_tools(document: Mapping[str, Any]) -> None:
    """Check that tools have names, and that the one that must be called is among them."""
    tools, choice = document.get("tools"), document.get("tool_choice")
    if tools is not None and not isinstance(tools, list):
        raise invalid("tools", "must be a list")
    names = set()
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise invalid(f"tools[{index}]", "must be an object")
        if tool.get("type", "function") != "function":
            continue
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"tools[{index}].function", "must be an object with a name")
        names.add(function["name"])
    match choice:
        case None | "auto" | "none":
            return
        case "required":
            if not tools:
                raise invalid("tool_choice", "must not be 'required': there are no tools")
        case {"type": "function"}:
            function = choice.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or name not in names:
                raise invalid("tool_choice", "must name one of the tools")
        case str():
            raise invalid("tool_choice", "must be 'auto', 'none', 'required' or an object")
        case dict():
            return
        case _:
            raise invalid("tool_choice", "must be 'auto', 'none', 'required' or an object")


def _check_conflicts(document: Mapping[str, Any]) -> None:
    """Refuse parameters that contradict each other, as OpenAI does."""
    if document.get("stream_options") is not None and document.get("stream") is not True:
        raise invalid("stream_options", "is for streams only: 'stream' is not true")
    fewest, most = document.get("max_tokens"), document.get("max_completion_tokens")
    if fewest is not None and most is not None and fewest != most:
        raise invalid("max_tokens", "says something else than 'max_completion_tokens': send one of them")
    if document.get("top_logprobs") and not document.get("logprobs"):
        raise invalid("top_logprobs", "is for 'logprobs' only: that is not true")


def _is_prompt(prompt: object) -> bool:
    if isinstance(prompt, str):
        return prompt != ""
    if not isinstance(prompt, list) or not prompt:
        return False
    if all(isinstance(part, str) and part for part in prompt):
        return True
    return is_tokens(prompt) or all(isinstance(part, list) and part and is_tokens(part) for part in prompt)


def is_tokens(part: list[Any]) -> bool:
    """Tell whether a list is one of token numbers."""
    # In two passes that run no code of ours: there may be millions of them, and everybody waits.
    return set(map(type, part)) <= {int} and min(part, default=0) >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_text_or_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_logprobs(value: object) -> bool:
    return type(value) in {bool, int}


@dataclass(frozen=True, slots=True)
class _Type:
    accepts: Callable[[object], bool]
    description: str


_TYPES: Mapping[str, _Type] = {
    "stream": _Type(_is_bool, "true or false"),
    "stream_options": _Type(_is_object, "an object"),
    "max_tokens": _Type(_is_count, "a whole number of at least 1"),
    "max_completion_tokens": _Type(_is_count, "a whole number of at least 1"),
    "n": _Type(_is_count, "a whole number of at least 1"),
    "temperature": _Type(_is_number, "a number"),
    "top_p": _Type(_is_number, "a number"),
    "top_k": _Type(_is_integer, "a whole number"),
    "min_p": _Type(_is_number, "a number"),
    "presence_penalty": _Type(_is_number, "a number"),
    "frequency_penalty": _Type(_is_number, "a number"),
    "repetition_penalty": _Type(_is_number, "a number"),
    "seed": _Type(_is_integer, "a whole number"),
    "stop": _Type(_is_text_or_texts, "a text or a list of texts"),
    "logprobs": _Type(_is_logprobs, "true, false or a whole number"),
    "top_logprobs": _Type(_is_integer, "a whole number"),
    "logit_bias": _Type(_is_object, "an object"),
    "response_format": _Type(_is_object, "an object"),
    "tools": _Type(_is_list, "a list"),
    "user": _Type(lambda value: isinstance(value, str), "a text"),
}
"""Parameters by name: what is accepted apart from null, and its description. Unknown parameters are passed on."""

KNOWN = frozenset(
    {
        *FORBIDDEN,
        *_TYPES,
        *("model", "messages", "prompt", "suffix", "input", "documents", "query", "tool_choice", "parallel_tool_calls"),
        *("dimensions", "encoding_format", "truncate", "top_n", "return_documents", "chat_template_kwargs"),
        *("reasoning", "reasoning_effort"),
    }
)
"""Parameters that the gateway or an engine reads; no other may look like one of them."""
