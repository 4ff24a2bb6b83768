"""Pure: when an idle group measures its links: never while a request runs, and not right behind one."""

from dataclasses import dataclass
from typing import Literal

Measure = Literal["latency", "bandwidth"]

LATENCY_EVERY_S = 10.0
LATENCY_NUMBERS = 1023
"""With the flag in front 4 KiB."""
LATENCY_SUMS = 5
BANDWIDTH_EVERY_S = 60.0
BANDWIDTH_NUMBERS = 1024 * 1024 - 1
"""With the flag in front 4 MiB."""
BANDWIDTH_SUMS = 1
ALLOWANCE_S = 15.0
"""What one measurement may take, as `pace.FLOOR_S`: a request that waits behind one on a ring that was cut has to be
told within 20 s as well. So long take 4 MiB at 6 Mbit/s, where no model can be shared."""
QUIET_S = 1.0
"""A client that goes on at once, as an agent does, is not made to wait for a measurement."""


@dataclass(slots=True)
class LinkSchedule:
    """Owned by rank 0's generation thread. Times are seconds of a clock that is never set back."""

    latency_at: float = 0.0
    bandwidth_at: float = 0.0
    quiet_at: float = 0.0

    def worked(self, now: float) -> None:
        """Note that requests were computed."""
        self.quiet_at = now + QUIET_S

    def due(self, now: float) -> Measure | None:
        """Return what to measure now; it counts as done."""
        if now < self.quiet_at:
            return None
        if now >= self.latency_at:
            self.latency_at = now + LATENCY_EVERY_S
            return "latency"
        if now >= self.bandwidth_at:
            self.bandwidth_at = now + BANDWIDTH_EVERY_S
            return "bandwidth"
        return None

    def wait_s(self, now: float) -> float:
        """Return when to ask again."""
        return max(0.0, min(self.latency_at, self.bandwidth_at) - now, self.quiet_at - now)


def sizes(measure: Measure) -> tuple[int, int]:
    """Return how many numbers every rank adds, and how often."""
    return {
        "latency": (LATENCY_NUMBERS, LATENCY_SUMS),
        "bandwidth": (BANDWIDTH_NUMBERS, BANDWIDTH_SUMS),
    }[measure]
