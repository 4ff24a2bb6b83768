"""Pure: what all engines that are asked in words of their own have in common: what is left out, and what is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from runtime.gateway.errors import ApiError

HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Parameters that change no answer: they are left out."""


def refused(engine: str, param: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the refusal of a parameter that an engine cannot take."""
    return ApiError(400, f"'{param}' {message} (engine {engine}).", code=code, param=param)


def refuse_others(engine: str, document: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `ApiError` for a parameter that says something and that the engine does not know."""
    for key, value in document.items():
        if value is not None and key not in known and key not in HARMLESS:
            raise refused(engine, key, "is not supported", "unsupported_parameter")


def truth(engine: str, document: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a parameter that is true or false; raises `ApiError` for anything else."""
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise refused(engine, key, "must be true or false")
    return default if value is None else value
