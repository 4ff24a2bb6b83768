"""Pure: when an endpoint is asked for a token although no client asks."""

from __future__ import annotations

from runtime.gateway.routing.breaker import Closed, HalfOpen
from runtime.gateway.routing.pool import Standing

CHANGING_S = 1.0
"""Between checks of an endpoint whose last one failed and whose breaker is still closed."""
UNDECIDED_S = 30.0
"""Between checks that said nothing, such as a refused key: the default interval."""


def check_due(standing: Standing, check_s: float | None, now: float) -> float | None:
    """Return when an endpoint is to be asked for a token, on the clock of `now`; None while there is no need.

    An open breaker is tried as soon as its time is over. A closed one is looked at only where `check_s`, in seconds, is
    set, and only after that long without a proper answer.
    """
    probe = standing.probe
    undecided_until = 0.0 if probe is None or probe.effect != "neutral" else probe.at + (check_s or UNDECIDED_S)
    if isinstance(standing.breaker, HalfOpen):
        return max(standing.breaker.lease_until, standing.busy_until)
    if not isinstance(standing.breaker, Closed):
        return max(standing.breaker.until, standing.busy_until, undecided_until)
    if check_s is None:
        return None
    if standing.in_flight:
        # Its clients will see for themselves.
        return now + check_s
    if probe is not None and probe.effect == "failure" and probe.at >= standing.heard_at:
        return max(probe.at + min(CHANGING_S, check_s), standing.busy_until)
    return max(standing.heard_at + check_s, standing.busy_until, undecided_until)
