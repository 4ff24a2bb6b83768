"""Pure: what is kept of a request that is over, in the words of `schemas.history`, and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from runtime.gateway.observe.receipts import GOOD, Entry
from runtime.gateway.routing.outcome import COLD, CONTEXT_OVERFLOW, OUTRUN, PASSING, SIMULATED, SKIPPED
from schemas.history import PastError, PastRequest

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a cell begins that spreadsheets compute; names come from clients."""


_FINE = GOOD | {SKIPPED.label}
_NO_FAILURES = _FINE | PASSING | {COLD, OUTRUN.label, SIMULATED.label, CONTEXT_OVERFLOW.label}
"""Outcomes of attempts in which nothing was wrong with the endpoint; a request that ends so is told as one error."""


def request_of(entry: Entry) -> PastRequest:
    """Return what is kept of a request."""
    last = entry.made[-1] if entry.made else None
    first_at = last.first_at if last is not None else None
    spent_s = 0.0 if first_at is None or last is None else last.ended_at - first_at
    return PastRequest(
        id=entry.id,
        at=entry.at,
        role=entry.route,
        model=entry.model,
        path=entry.path,
        is_stream=entry.is_stream,
        endpoint=entry.endpoint,
        attempts=tuple(made.endpoint for made in entry.made),
        fallback=entry.fallback,
        outcome=entry.outcome,
        status=entry.status or None,
        tokens=entry.tokens or None,
        first_s=None if first_at is None else round(first_at - entry.began_at, 6),
        took_s=round(entry.ended_at - entry.began_at, 6),
        tokens_per_s=round(entry.tokens / spent_s, 3) if entry.tokens and spent_s > 0 else None,
    )


def errors_of(entry: Entry) -> Iterator[PastError]:
    """Yield the attempts of a request that failed, also where another one made them good."""
    failed = [made for made in entry.made if made.outcome not in _NO_FAILURES]
    for made in failed:
        at = entry.at + made.ended_at - entry.began_at
        said = made.error or made.outcome
        yield PastError(
            request=entry.id,
            at=at,
            role=entry.route,
            endpoint=made.endpoint,
            outcome=made.outcome,
            error=said,
            status=entry.status or None,
        )
    if not failed and entry.outcome not in _FINE:
        told = [made.error for made in entry.made[-1:] if made.error]
        reasons = "; ".join(told or [f"{skip.name}: {skip.reason}" for skip in entry.skipped])
        yield PastError(
            request=entry.id,
            at=entry.at + entry.ended_at - entry.began_at,
            role=entry.route,
            endpoint=entry.endpoint,
            outcome=entry.outcome,
            error=reasons or entry.outcome,
            status=entry.status or None,
        )


def as_csv(kind: type[BaseModel], rows: Iterable[BaseModel]) -> str:
    """Return rows as comma-separated values under a line of their names (RFC 4180)."""
    names = list(kind.model_fields)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        value = " > ".join(str(part) for part in value)
    shown = str(value)
    return f"'{shown}" if isinstance(value, str) and shown.startswith(_FORMULA) else shown
