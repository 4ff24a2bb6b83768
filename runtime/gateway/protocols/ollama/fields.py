"""Pure: the fields of an Ollama request, read strictly: what has the wrong type is refused by the name its client uses.

Ollama reads JSON into Go types (ollama `api/types.go`): a wrong type is an error, null is the same as nothing, and a
whole number may be written as one with a fraction of zero, as JavaScript and Go clients do.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Mapping
from typing import Any

from runtime.gateway.bodies import LONGEST_MODEL, invalid
from runtime.gateway.errors import ApiError

_DURATION = re.compile(r"[+-]?(?:0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
"""A zero needs no unit where it stands alone (Go's `time.ParseDuration`)."""
LONGEST_DURATION = 64
"""Characters; Go's own longest, with all its units, has half of them."""
_PARTS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_IMAGES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
"""The kind of a picture by the first letters of its base64."""
LARGEST_WHOLE = (1 << 63) - 1
"""Of Go's `int` on machines of 64 bits."""
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,")


def text(document: Mapping[str, Any], key: str, where: str = "") -> str:
    """Return a text; empty where there is none. `where` is what stands before the key in messages."""
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(where + key, "must be a text")
    return value


def truth(document: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a parameter that is true or false."""
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(key, "must be true or false")
    return value


def number(document: Mapping[str, Any], key: str, where: str = "") -> float | None:
    """Return a number, or None where there is none."""
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(where + key, "must be a number")
    if abs(value) > sys.float_info.max:
        raise invalid(where + key, "must be a number that is not so large")
    return value


def whole(document: Mapping[str, Any], key: str, where: str = "") -> int | None:
    """Return a whole number, or None where there is none."""
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
        raise invalid(where + key, "must be a whole number")
    if abs(value) > LARGEST_WHOLE:
        raise invalid(where + key, "must be a number of 64 bits")
    return int(value)


def listed(document: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    """Return a list; empty where there is none."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(where + key, "must be a list")
    return value


def mapped(document: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """Return an object; empty where there is none."""
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(where + key, "must be an object")
    return value


def model(document: Mapping[str, Any], *others: str) -> str:
    """Return the name that is asked for, under `model` or, where that says nothing, under one of the older keys."""
    found = [text(document, key) for key in ("model", *others)]
    name = next(filter(None, found), "")
    if not name or len(name) > LONGEST_MODEL:
        raise invalid("model", "must name a role, an alias or a model")
    return name


def keep_alive_s(document: Mapping[str, Any]) -> float | None:
    """Return how long a model is to stay in memory, in seconds, negative for ever; None where nothing is said.

    A number of seconds, or a text as Go's durations are written: `5m`, `1h30m`, `-1s`, `0`.
    """
    value = document.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= LONGEST_DURATION and _DURATION.fullmatch(value):
        seconds = sum(float(size) * _SECONDS[unit] for size, unit in _PARTS.findall(value))
        return -seconds if value.startswith("-") else seconds
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid("keep_alive", "must be a number of seconds or a duration such as '5m'")
    try:
        return float(value)
    except OverflowError:
        raise invalid("keep_alive", "must be a number of seconds that is not so large") from None


def effort(document: Mapping[str, Any]) -> str | None:
    """Return OpenAI's `reasoning_effort` for `think`; None where nothing is said.

    `true` alone is Ollama's medium (`ThinkValue.String` in ollama `api/types.go`); OpenAI's scale ends at high.
    """
    value = document.get("think")
    match value:
        case None:
            return None
        case bool():
            return "medium" if value else "none"
        case "low" | "medium" | "high":
            return str(value)
        case "max":
            return "high"
        case _:
            raise invalid("think", "must be true, false, 'low', 'medium', 'high' or 'max'")


def image(value: object, where: str) -> dict[str, Any]:
    """Return OpenAI's part of a message for a picture in base64."""
    if not isinstance(value, str) or not value:
        raise invalid(where, "must be a picture in base64")
    if value.startswith(("http://", "https://")):
        message = f"'{where}' is a URL: pictures are sent as base64, nothing is fetched for a client."
        raise ApiError(400, message, code="invalid_value", param=where)
    prefix = _DATA_URL.match(value)
    coded = value[prefix.end() :] if prefix else value
    try:
        base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(where, "must be a picture in base64") from None
    kind = next((kind for start, kind in _IMAGES.items() if coded.startswith(start)), None)
    if kind is None:
        raise invalid(where, "must be a picture in PNG, JPEG, GIF or WebP")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{coded}"}}
