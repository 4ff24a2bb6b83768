"""Pure: bounds of numbers, in words that llguidance keeps.

llguidance 1.9 lets a whole number through that a schema excludes, where the other bound is less than 1 away from it:
`{"exclusiveMinimum": 0, "maximum": 0.5}` allows 0. Where both stand in one schema, the excluded bound moves a little
inwards instead: all that is written then still validates. tests/runtime/worker/test_schema_corpus.py shows both.
"""

import math
from collections.abc import Mapping
from typing import Any

_NEAREST = 1e-9
"""What moves a bound, of the distance between the two."""
_LARGE = 2**52
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values hold schemas by names."""
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas."""


def with_kept_bounds(schema: Any) -> Any:
    """Return a schema, or a list of them, whose bounds llguidance keeps."""
    if isinstance(schema, list):
        return [with_kept_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts = {key: _part(key, value) for key, value in schema.items()}
    low, high = (_number(schema.get(key)) for key in ("exclusiveMinimum", "exclusiveMaximum"))
    least, most = (_number(schema.get(key)) for key in ("minimum", "maximum"))
    above = min((bound for bound in (most, high) if bound is not None), default=None)
    below = max((bound for bound in (least, low) if bound is not None), default=None)
    if low is not None and above is not None and float(low).is_integer() and 0 < above - low < 1:
        del parts["exclusiveMinimum"]
        inwards = max(low + (above - low) * _NEAREST, math.nextafter(low, math.inf))
        parts["minimum"] = inwards if least is None else max(inwards, least)
    if high is not None and below is not None and float(high).is_integer() and 0 < high - below < 1:
        del parts["exclusiveMaximum"]
        inwards = min(high - (high - below) * _NEAREST, math.nextafter(high, -math.inf))
        parts["maximum"] = inwards if most is None else min(inwards, most)
    return parts


def _part(key: str, value: Any) -> Any:
    if key in _BY_NAME and isinstance(value, Mapping):
        return {name: with_kept_bounds(part) for name, part in value.items()}
    return value if key in _DATA else with_kept_bounds(value)


def _number(value: object) -> float | None:
    """Return a number whose neighbours are less than 1 away from it; others need no help."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _LARGE else None
