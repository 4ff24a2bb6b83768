"""Pure: when an endpoint is asked for a token although no client asks."""

from __future__ import annotations

from runtime.gateway.routing.breaker import Closed, HalfOpen, Isolated
from runtime.gateway.routing.outcome import PASSING
from runtime.gateway.routing.standing import Standing

SUSPECT_S = 5.0
"""After the last failure of an endpoint whose breaker is still closed. Others are preferred to it, so that for long no
client may find out whether it is dead or well."""
LONGEST_SUSPECT_S = 30.0
"""Between checks of an endpoint that is not ready, which come half as often each time: the default interval."""
PASSING_S = 1.0
"""The least between checks of an endpoint that says that it will answer soon."""
UNDECIDED_S = 30.0
"""Between checks that said nothing, such as a refused key: the default interval."""
_LARGEST_EXPONENT = 8
"""Far above the longest interval. A machine may be off for days, and floats end at 2 ** 1023."""


def check_due(standing: Standing, check_s: float | None, now: float) -> float | None:
    """Return when an endpoint is to be asked for a token, on the clock of `now`; None while there is no need.

    An open breaker is tried as soon as its time is over. A closed one is looked at after a failure, again after a check
    that failed and, where `check_s` is set, after that many seconds without a proper answer. Nobody looks at an
    endpoint that was isolated by hand.
    """
    probe = standing.probe
    undecided_until = 0.0
    if probe is not None and probe.effect == "neutral":
        undecided_until = probe.at + (PASSING_S if probe.outcome in PASSING else check_s or UNDECIDED_S)
    if isinstance(standing.breaker, Isolated):
        return None
    if isinstance(standing.breaker, HalfOpen):
        return max(standing.breaker.lease_until, standing.busy_until)
    if not isinstance(standing.breaker, Closed):
        return max(standing.breaker.until, standing.busy_until, undecided_until)
    if standing.failed_checks and probe is not None:
        doubled_s = SUSPECT_S * 2.0 ** min(standing.failed_checks - 1, _LARGEST_EXPONENT)
        wait_s = min(doubled_s, check_s or LONGEST_SUSPECT_S, LONGEST_SUSPECT_S)
        since = probe.at
    elif standing.breaker.failures:
        wait_s, since = SUSPECT_S if check_s is None else min(SUSPECT_S, check_s), standing.failed_at
    elif check_s is not None:
        wait_s, since = check_s, standing.heard_at
    else:
        return None
    if standing.in_flight:
        # Its clients will see for themselves.
        return now + wait_s
    return max(since + wait_s, standing.busy_until, undecided_until)
