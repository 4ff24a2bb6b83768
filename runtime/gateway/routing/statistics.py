"""Pure: what is counted of one endpoint: how long its answers took, how fast its tokens came, what its breaker did."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.admin import BreakerState

REMEMBERED = 256
"""Answers over which percentiles are taken."""
REMEMBERED_CHANGES = 32
"""Changes of a breaker that are told."""


class Change(NamedTuple):
    """One change of a breaker."""

    at: float
    """On the pool's clock."""
    state: BreakerState
    """What it became."""
    cause: str


@dataclass(slots=True)
class Statistics:
    """The counts of one endpoint. Times are on the pool's clock; answers to probes are no answers to clients."""

    answers: int = 0
    failures: int = 0
    answered_at: float | None = None
    """When it last gave what its model is for, a probe's token, vector or score included."""
    heard_at: float | None = None
    """When it last said anything at all, an error included."""
    failed_at: float | None = None
    """When `last_error` came."""
    is_silent: bool = False
    """Whether it took its last request, and gave no token."""
    is_unreachable: bool = False
    """Whether nobody answered when it was last asked."""
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=REMEMBERED_CHANGES))
    """The last ones of its breaker, oldest first."""
    changed: Counter[str] = field(default_factory=Counter)
    """How often its breaker became what."""
    _whole_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _first_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _rates: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def change(self, at: float, state: BreakerState, cause: str) -> None:
        """Remember that the breaker became something else."""
        self.changes.append(Change(at, state, cause))
        self.changed[state] += 1

    def answer(self, began_at: float, first_at: float | None, now: float, tokens: int) -> None:
        """Count an answer to a client: begun, with its first content, and ended at these times."""
        self.answers += 1
        self._whole_s.append(now - began_at)
        if first_at is not None:
            self._first_s.append(first_at - began_at)
        since = began_at if first_at is None else first_at
        if tokens and now > since:
            self._rates.append((tokens, now - since))

    def whole_s(self) -> tuple[float, float] | None:
        """Return the median and the 95th percentile of the seconds that answers took; None without any."""
        return percentiles(self._whole_s)

    def first_content_s(self) -> tuple[float, float] | None:
        """Return the same of the seconds to the first content of answers that were streamed."""
        return percentiles(self._first_s)

    def tokens_per_s(self) -> float | None:
        """Return the tokens a second of one answer, on average; None while no endpoint's answer named its tokens."""
        seconds = sum(taken_s for _, taken_s in self._rates)
        return sum(tokens for tokens, _ in self._rates) / seconds if seconds else None


def percentiles(values: Iterable[float]) -> tuple[float, float] | None:
    """Return the median and the 95th percentile, each one of the values (nearest rank); None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[_rank(len(ordered), 50)], ordered[_rank(len(ordered), 95)]


def _rank(count: int, percent: int) -> int:
    return max(0, -(-count * percent // 100) - 1)
