"""Pure: the parts of a running gateway that its HTTP handlers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.gateway.facts.known import FactBook
from runtime.gateway.facts.poller import FactPoller
from runtime.gateway.holds import Holds
from runtime.gateway.isolations import Isolations
from runtime.gateway.live import Live
from runtime.gateway.observe.history import History
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.observe.receipts import Receipts
from runtime.gateway.prober import Prober
from runtime.gateway.queues import Queues
from runtime.gateway.relay import Relay
from runtime.gateway.reload import Reloader
from runtime.gateway.routing.pool import Pool
from runtime.gateway.security.guard import Guard


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    live: Live
    pool: Pool
    metrics: Metrics
    relay: Relay
    reloader: Reloader
    holds: Holds
    queues: Queues
    prober: Prober
    now: Callable[[], float]
    """The event loop's clock."""
    guard: Guard
    """Who may ask."""
    receipts: Receipts
    facts: FactBook
    """What is known of the endpoints' models: `facts.of(target)`."""
    history: History
    """What requests have come to, also before this process began."""
    fact_poller: FactPoller
    """Asks for them: `await fact_poller.refresh(age_s, within_s)` for what must be as it is now."""
    isolations: Isolations
