"""Pure: how an endpoint is, from what was heard of it: a recent real token is health, a 200 from a page is not."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.gateway.routing.breaker import Closed, Isolated, State
from schemas.admin import Health

FRESH_S = 60.0
"""How long a real answer shows that an endpoint can answer."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an endpoint. Ages are in seconds, None where it never happened."""

    breaker: State
    in_flight: int = 0
    answered_age_s: float | None = None
    """Of its last token, vector or score."""
    heard_age_s: float | None = None
    """Of the last thing that it said at all, an error included."""
    is_unreachable: bool = False
    """Whether nobody answered when it was last asked."""
    is_unready: bool = False
    """Whether its last check failed."""
    is_silent: bool = False
    """Whether it took its last request and gave no token."""
    is_refused: bool = False
    """Whether it does not take our key."""
    is_asleep: bool = False
    """Whether its model is not in memory."""
    is_busy: bool = False
    """Whether it said that it has enough to do."""
    is_full: bool = False
    """Whether it has as many requests as the files allow."""
    check_s: float | None = None
    """Seconds between its checks, where the files want any."""


def health_of(facts: Facts) -> Health:
    """Tell how an endpoint is, in the words of `schemas.admin.Health`; of several that are true the worst one."""
    is_out = facts.is_unready or not isinstance(facts.breaker, Closed | Isolated)
    if facts.is_refused:
        return "misconfigured"
    if facts.is_silent and is_out:
        return "wedged"
    if facts.is_unreachable:
        return "unknown"
    if facts.is_asleep:
        return "cold"
    if facts.is_busy or facts.is_full:
        return "saturated"
    fresh_s = max(FRESH_S, 2 * (facts.check_s or 0.0))
    is_fresh = facts.answered_age_s is not None and facts.answered_age_s <= fresh_s
    if is_fresh and not is_out and not facts.is_silent:
        return "serving" if facts.in_flight else "ready"
    return "unknown" if facts.heard_age_s is None else "alive"
