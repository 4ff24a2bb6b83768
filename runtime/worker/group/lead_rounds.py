"""I/O: what rank 0 knows of the round under way, and of the links that rounds of their own have measured."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from runtime.worker.group.link_schedule import Measure, sizes
from runtime.worker.group.wire import RIGHT
from runtime.worker.steps import GroupEndedError
from schemas.messages import WorkerLink


@dataclass(slots=True)
class Pending:
    """The round under way."""

    number: int
    began: float
    """Seconds on the monotonic clock."""
    allowance_s: float
    verdict: Future[None]
    measure: Measure | None = None
    """What it measures; none for a step of the model."""
    digests: dict[int, str] = field(default_factory=dict)
    """Keyed by rank."""
    seconds: dict[int, float] = field(default_factory=dict)
    """What one sum took each rank, where it measures."""


@dataclass(slots=True)
class _Links:
    """What one rank has measured last: seconds of one sum, and when."""

    latency: tuple[float, float] | None = None
    bandwidth: tuple[float, float] | None = None


class Rounds:
    """Owned by rank 0's event loop."""

    def __init__(self, size: int) -> None:
        self.done = 0
        """The number of the last round that all ranks have computed alike."""
        self._size = size
        self._pending: Pending | None = None
        self._links = {rank: _Links() for rank in range(size)}

    def begin(self, pending: Pending) -> None:
        """Take the next round."""
        self._pending = pending

    def take(self, rank: int, number: int, digest: str, seconds: float | None) -> str | None:
        """Note what a rank has computed; return what is wrong with it.

        When every rank has computed the same, who waits for the round is told.
        """
        pending = self._pending
        if pending is None or pending.number != number:
            return f"rank {rank} computed round {number}, which is not under way"
        pending.digests[rank] = digest
        if seconds is not None:
            pending.seconds[rank] = seconds
        if len(pending.digests) < self._size:
            return None
        if len(set(pending.digests.values())) > 1 and pending.measure is None:
            return f"the ranks computed different tokens in round {number}"
        if pending.measure is not None and set(pending.digests.values()) != {RIGHT}:
            return f"the collectives gave a wrong sum in round {number}, which measured the links"
        self._pending, self.done = None, number
        if pending.measure is not None:
            self._keep(pending.measure, pending.seconds)
        pending.verdict.set_result(None)
        return None

    def stalled(self, now: float) -> str | None:
        """Return what is said of a round that made no progress for too long."""
        pending = self._pending
        if pending is None or now - pending.began <= pending.allowance_s:
            return None
        late = ", ".join(str(rank) for rank in range(self._size) if rank not in pending.digests)
        return f"round {pending.number} made no progress for {pending.allowance_s:.0f} s in rank {late}"

    def give_up(self, message: str) -> None:
        """Let nobody wait for the round under way."""
        if self._pending is not None and not self._pending.verdict.done():
            self._pending.verdict.set_exception(GroupEndedError(message))

    def link(self, rank: int) -> WorkerLink | None:
        """Return what a rank has measured of its links."""
        now, links = time.monotonic(), self._links[rank]
        if links.latency is None:
            return None
        seconds, at = links.latency
        gbps = age = None
        if links.bandwidth is not None:
            sum_s, measured_at = links.bandwidth
            numbers, _ = sizes("bandwidth")
            gbps, age = round((numbers + 1) * 32 / sum_s / 1e9, 3), round(now - measured_at, 3)
        return WorkerLink(
            latency_us=round(seconds * 1e6, 1),
            latency_age_s=round(now - at, 3),
            bandwidth_gbps=gbps,
            bandwidth_age_s=age,
        )

    def _keep(self, measure: Measure, seconds: dict[int, float]) -> None:
        now = time.monotonic()
        for rank, took in seconds.items():
            if measure == "latency":
                self._links[rank].latency = took, now
            else:
                self._links[rank].bandwidth = took, now
