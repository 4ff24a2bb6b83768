"""Pure: the latest requests that are over, and how each was routed. Nothing of what was asked or answered is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from runtime.gateway.attempt import Ask, Course, Made
from runtime.gateway.routing.select import Skipped
from schemas.receipt import AttemptReceipt, PassedOver, Receipt

KEPT = 1000
"""Receipts that are kept, some 1 MiB of them."""
GOOD = frozenset({"ok", "client left"})
"""Outcomes that are nobody's failure."""


class Entry(NamedTuple):
    """One request, as it was when it ended. Times are the event loop's; they are put into words when somebody asks."""

    id: str
    at: float
    """When it came, seconds since the epoch."""
    began_at: float
    ended_at: float
    model: str
    route: str
    path: str
    is_stream: bool
    endpoint: str
    fallback: str
    outcome: str
    made: tuple[Made, ...]
    skipped: tuple[Skipped, ...]
    generation: int
    revision: str | None
    status: int = 0
    """Of the answer; 0 where the client left before there was one."""
    tokens: int = 0
    """How many were generated, as the endpoint says."""

    @property
    def is_troubled(self) -> bool:
        """Tell whether it failed, or did not go the way that it would on a good day."""
        return self.outcome not in GOOD or len(self.made) > 1 or bool(self.fallback)


class Receipts:
    """The last `KEPT` of them. Used on one event loop."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def add(self, entry: Entry) -> None:
        """Keep one; the oldest goes. Of two requests with one id, which clients may choose, the later is kept."""
        entries = self._entries
        if entry.id in entries:
            del entries[entry.id]
        entries[entry.id] = entry
        if len(entries) > self._kept:
            entries.popitem(last=False)

    def find(self, request_id: str) -> Receipt | None:
        """Return the receipt of a request."""
        entry = self._entries.get(request_id)
        return None if entry is None else written(entry)

    def latest(self, limit: int, *, only_troubled: bool = False) -> Iterator[Receipt]:
        """Yield the newest ones first."""
        left = limit
        for entry in reversed(self._entries.values()):
            if left <= 0:
                return
            if entry.is_troubled or not only_troubled:
                left -= 1
                yield written(entry)


def entry_of(
    ask: Ask,
    course: Course,
    endpoint: str,
    outcome: str,
    ended_at: float,
    *,
    wall: float,
    generation: int,
    revision: str | None,
) -> Entry:
    """Return what is kept of a request that has just ended; `wall` is now, in seconds since the epoch."""
    return Entry(
        id=ask.request_id,
        at=wall - (ended_at - course.started_at),
        began_at=course.started_at,
        ended_at=ended_at,
        model=ask.body.model,
        route=ask.route.name,
        path=ask.client_path or ask.path,
        is_stream=ask.body.is_stream,
        endpoint=endpoint,
        fallback=course.fallback,
        outcome=outcome,
        made=tuple(course.made),
        skipped=tuple(course.skipped),
        generation=generation,
        revision=revision,
        status=course.status,
        tokens=course.tokens,
    )


def written(entry: Entry) -> Receipt:
    """Return an entry as it is told."""
    return Receipt(
        id=entry.id,
        at=entry.at,
        model=entry.model,
        route=entry.route,
        path=entry.path,
        is_stream=entry.is_stream,
        endpoint=entry.endpoint,
        fallback=entry.fallback,
        outcome=entry.outcome,
        took_s=_since(entry, entry.ended_at),
        attempts=tuple(
            AttemptReceipt(
                endpoint=made.endpoint,
                began_s=_since(entry, made.began_at),
                first_s=None if made.first_at is None else _since(entry, made.first_at),
                ended_s=_since(entry, made.ended_at),
                outcome=made.outcome,
                error=made.error,
                emulated=made.emulated,
                dropped=made.dropped,
                url=made.identity.url if made.identity else "",
            )
            for made in entry.made
        ),
        passed_over=tuple(
            PassedOver(endpoint=skip.name, reason=skip.reason, detail=skip.detail, retry_s=skip.retry_s)
            for skip in entry.skipped
            if skip.reason != "tried"
        ),
        generation=entry.generation,
        revision=entry.revision,
    )


def _since(entry: Entry, moment: float) -> float:
    return round(moment - entry.began_at, 6)
