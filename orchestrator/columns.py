"""Pure: rows of text as a table with columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each row, every column as wide as its longest cell; all rows have equally many cells."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
