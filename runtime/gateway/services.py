"""Pure: the parts of a running gateway that its HTTP handlers use."""

from __future__ import annotations

from dataclasses import dataclass

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
