"""Pure: JSON that other programs wrote, read without trusting its shape. Nothing here raises."""

from __future__ import annotations

from collections.abc import Mapping

LARGEST_COUNT = 1 << 62
"""A number above this is nonsense, whatever it counts."""
MOST_ROWS = 2000
"""Of a list that are looked at; every one costs time on an event loop."""
LONGEST_TEXT = 200
"""Characters of a name or label; more is nonsense, and would be shown to people."""


def fields(value: object) -> Mapping[str, object]:
    """Return a JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Mapping[str, object]]:
    """Return the JSON objects of a list, or of one that should have been a list, `MOST_ROWS` of them at most."""
    if isinstance(value, dict):
        return [value]
    return [row for row in value[:MOST_ROWS] if isinstance(row, dict)] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """Return a name or label: a short printable text that says something."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        return None
    return value.strip() or None


def message(value: object) -> str | None:
    """Return a text of any length that says something, as errors do."""
    return value.strip() or None if isinstance(value, str) else None


def count(value: object) -> int | None:
    """Return a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < LARGEST_COUNT else None


def flag(value: object) -> bool | None:
    """Return a truth value."""
    return value if isinstance(value, bool) else None


def texts(value: object) -> frozenset[str]:
    """Return the labels of a list."""
    listed = value[:MOST_ROWS] if isinstance(value, list) else []
    return frozenset(found for each in listed if (found := text(each)))
