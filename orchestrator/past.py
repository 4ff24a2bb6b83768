"""Pure: past requests and errors of a gateway, as people read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.columns import columns
from orchestrator.status import duration
from schemas.history import ErrorGroup, PastError, PastRequest

Clock = Callable[[float], str]
"""Writes a time, in seconds since 1970, as the clock of this place shows it."""

_REQUESTS = ("WHEN", "ASKED FOR", "STATUS", "OUTCOME", "WAY", "TOKENS", "FIRST", "TOOK", "TOKENS/S", "ID")
_ERRORS = ("WHEN", "ROLE", "ENDPOINT", "OUTCOME", "CLIENT GOT", "ID", "ERROR")


def request_lines(requests: Sequence[PastRequest], clock: Clock) -> Iterator[str]:
    """Yield a table of requests, the newest at the bottom, where one looks."""
    yield from columns([_REQUESTS, *(_request(each, clock) for each in reversed(requests))])


def error_lines(errors: Sequence[PastError], groups: Sequence[ErrorGroup], clock: Clock, now: float) -> Iterator[str]:
    """Yield a table of errors, the newest at the bottom, and how many of all that are kept are alike."""
    yield from columns([_ERRORS, *(_error(each, clock) for each in reversed(errors))])
    yield "In all that is kept:"
    for group in groups:
        last = f"last {duration(now - group.last_at)} ago"
        yield f"  {group.count} x {group.endpoint or 'nobody'}: {group.outcome}, {last}"


def _request(each: PastRequest, clock: Clock) -> tuple[str, ...]:
    way = " -> ".join(each.attempts) or "nobody"
    return (
        clock(each.at),
        each.model,
        "left" if each.status is None else str(each.status),
        each.outcome,
        f"{way}, fallback {each.fallback}" if each.fallback else way,
        _or_dash(each.tokens, "{}"),
        _or_dash(each.first_s, "{:.3f} s"),
        f"{each.took_s:.3f} s",
        _or_dash(each.tokens_per_s, "{:.1f}"),
        each.id,
    )


def _error(each: PastError, clock: Clock) -> tuple[str, ...]:
    status = "nothing: it left" if each.status is None else str(each.status)
    return (clock(each.at), each.role, each.endpoint or "-", each.outcome, status, each.request, each.error)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
