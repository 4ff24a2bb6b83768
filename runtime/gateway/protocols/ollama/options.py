"""Pure: Ollama's `options` in OpenAI's words.

Names and defaults are those of `Options` in ollama `api/types.go` and of ollama-python's `_types.py`. What only says
how an engine is to be loaded is a matter of the stack files here, and changes no answer: it is passed over, and so is
what Ollama does not know either. What would change an answer and cannot be said is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.gateway.bodies import invalid
from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.ollama.fields import mapped, number, truth, whole

MOST_LOGPROBS = 20
"""Ollama's bound, and OpenAI's."""

_WHERE = "options."

_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_UNSAYABLE: Mapping[str, float] = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0}
"""Ways to choose the next token that OpenAI has no word for, with the value that switches each off."""


def openai_options(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's parameters for `options`; raises `ApiError` with status 400."""
    options = mapped(document, "options")
    made: dict[str, Any] = {}
    for key in _NUMBERS:
        if (value := number(options, key, _WHERE)) is not None:
            made[key] = value
    for key, off in _UNSAYABLE.items():
        if (value := number(options, key, _WHERE)) is not None and value != off:
            message = f"'{_WHERE}{key}' is not supported: leave it out, or at {off:g}."
            raise ApiError(400, message, code="unsupported_parameter", param=_WHERE + key)
    # Values that switch a parameter off are left out: not every endpoint takes the parameter.
    if (min_p := number(options, "min_p", _WHERE)) is not None and min_p > 0:
        made["min_p"] = min_p
    if (top_k := whole(options, "top_k", _WHERE)) is not None and top_k > 0:
        made["top_k"] = top_k
    if (penalty := number(options, "repeat_penalty", _WHERE)) is not None and penalty != 1:
        made["repetition_penalty"] = penalty
    if (seed := whole(options, "seed", _WHERE)) is not None and seed >= 0:
        made["seed"] = seed
    if (most := whole(options, "num_predict", _WHERE)) is not None and most > 0:
        made["max_tokens"] = most
    if stop := _stop(options.get("stop")):
        made["stop"] = stop
    return made


def _stop(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid(f"{_WHERE}stop", "must be a list of texts")
    return [text for text in texts if text]


def response_format(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's `response_format` for `format`, or nothing; raises `ApiError` with status 400."""
    match document.get("format"):
        case None | "":
            return {}
        case "json":
            return {"response_format": {"type": "json_object"}}
        case dict() as schema:
            named = {"name": "format", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case _:
            raise invalid("format", "must be 'json' or a JSON schema")


def logprobs(document: Mapping[str, Any]) -> int | None:
    """Return how many alternatives are to be told to each token, from `logprobs` and `top_logprobs`.

    None where no log probabilities are wanted. Raises `ApiError` with status 400.
    """
    is_wanted = truth(document, "logprobs", default=False)
    top = whole(document, "top_logprobs") or 0
    if not 0 <= top <= MOST_LOGPROBS:
        raise invalid("top_logprobs", f"must be between 0 and {MOST_LOGPROBS}")
    return top if is_wanted else None
