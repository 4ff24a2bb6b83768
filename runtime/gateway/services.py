"""Pure: the parts of a running gateway that its HTTP handlers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.gateway.holds import Holds
from runtime.gateway.live import Live
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.relay import Relay
from runtime.gateway.reload import Reloader
from runtime.gateway.routing.pool import Pool


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    live: Live
    pool: Pool
    metrics: Metrics
    relay: Relay
    reloader: Reloader
    holds: Holds
    now: Callable[[], float]
    """The event loop's clock."""
    worker_token: str | None = field(repr=False)
    """What the orchestrator shows when it asks from another machine."""
