"""Pure: what is remembered of one endpoint across requests and reloads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from runtime.gateway.routing import breaker
from runtime.gateway.routing.breaker import State
from runtime.gateway.routing.pace import Pace
from runtime.gateway.routing.statistics import Statistics
from schemas.admin import BreakerState

STATES: dict[type[breaker.State], BreakerState] = {
    breaker.Closed: "closed",
    breaker.Open: "open",
    breaker.HalfOpen: "half-open",
    breaker.Isolated: "isolated",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking an endpoint for a token."""

    at: float
    outcome: str
    """`ok`, or the label of what went wrong."""
    effect: breaker.Effect


@dataclass(slots=True)
class Standing:
    """One endpoint's state."""

    in_flight: int = 0
    breaker: breaker.State = field(default_factory=breaker.Closed)
    busy_until: float = 0.0
    asleep: Literal["", "cold", "loading", "model failed"] = ""
    """Where its model was not in memory when it was last heard of."""
    is_unloaded: bool = False
    """Whether its server said that the model is not in memory, and no answer of it has shown otherwise since."""
    absent_until: float = 0.0
    is_refused: bool = False
    """Whether it did not take our key when it was last asked."""
    broken_until: float = 0.0
    """Until when a drill lets every request to it fail."""
    last_error: str | None = None
    outrun: int = 0
    """How many requests in a row were not waited for, because another endpoint had answered them first."""
    waited_out: int = 0
    """Requests that it is still waited for although another endpoint has answered them."""
    heard_at: float = 0.0
    """When it last answered properly, or was listed first."""
    failed_at: float = 0.0
    """When a request to it last failed."""
    is_probed: bool = False
    """Whether somebody asks it for a token when its breaker waits for a trial."""
    probe: Probe | None = None
    """The last one."""
    failed_checks: int = 0
    """Probes in a row that failed while its breaker was closed. From the first one on it is not ready: that is no
    request's failure, and an answer to anybody ends it."""
    begun: deque[float] = field(default_factory=deque)
    """When the requests of the last minute began, oldest first; only of endpoints with a limit for that."""
    pace: Pace = field(default_factory=Pace)
    stats: Statistics = field(default_factory=Statistics)
    is_listed: bool = True
    """False once no table names it; it is dropped when its last request ends."""

    def become(self, state: State, now: float, cause: str) -> None:
        """Take over a state of the breaker, and remember when and why it changed."""
        if type(state) is not type(self.breaker):
            self.stats.change(now, STATES[type(state)], cause)
        self.breaker = state
