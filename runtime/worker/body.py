"""Pure: a request body becomes a JSON object, or a clear refusal."""

import json
import re
from typing import Any, NoReturn

from runtime.worker.errors import RequestError

MAX_DEPTH = 64
"""Nesting that a body may have. No documented request needs more than about ten."""

# A string counts as one item even where its closing quote is missing, so the scan stays linear on every input.
_ITEM = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a body that must hold one JSON object.

    NaN and the infinities, which Python's parser lets pass, are not JSON and are refused.

    Raises RequestError.
    """
    if is_deeper(body, MAX_DEPTH):
        raise RequestError(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8: byte {error.start} is invalid.") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}.") from error
    except ValueError as error:  # a number of more than 4300 digits
        raise RequestError("The body has a number that is too long.") from error
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    return value


def is_deeper(body: bytes, limit: int) -> bool:
    """Tell whether brackets and braces outside strings are nested deeper than `limit`; linear in the body's size."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    depth = 0
    for match in _ITEM.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"{name} is not a JSON number.")
