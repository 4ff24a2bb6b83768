"""Pure: what somebody does to an endpoint's breaker by hand. It outlives reloads, as all about an endpoint does."""

from __future__ import annotations

from runtime.gateway.routing import breaker
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import EndpointIdentity, Target

CAUSE = "by hand"


def isolate(pool: Pool, identity: EndpointIdentity) -> None:
    """Give an endpoint no more requests until somebody closes its breaker; those it works at are not disturbed."""
    standing = pool.standings[identity]
    standing.become(breaker.isolate(standing.breaker), pool.now(), CAUSE)


def isolate_again(pool: Pool, identity: EndpointIdentity) -> bool:
    """Isolate an endpoint that somebody has isolated before, or elsewhere; tell whether the table knows it."""
    standing = pool.expect(identity)
    if standing is None:
        return False
    standing.become(breaker.isolate(standing.breaker), pool.now(), CAUSE)
    return True


def break_for(pool: Pool, identity: EndpointIdentity, seconds: float) -> None:
    """Let every request and probe of an endpoint fail from now on, as if its port was closed.

    It ends after `seconds`, or when somebody closes the breaker: a drill whose program died leaves nothing broken.
    """
    pool.standings[identity].broken_until = pool.now() + seconds


def close(pool: Pool, identity: EndpointIdentity) -> None:
    """Close a breaker, and forget what else kept requests away from the endpoint."""
    standing = pool.standings[identity]
    standing.become(breaker.reset(standing.breaker), pool.now(), CAUSE)
    standing.busy_until = standing.absent_until = standing.broken_until = 0.0
    standing.failed_checks = 0
    pool.on_room()


def lease_probe(pool: Pool, target: Target, lease_s: float) -> Lease | None:
    """Take a place for a probe before its time; None while another trial is on its way.

    `lease_s` bounds how long the probe may keep other trials waiting, in seconds.
    """
    standing = pool.standings[target.identity]
    state = breaker.trial_by_hand(standing.breaker, pool.now(), lease_s)
    if state is None:
        return None
    standing.become(state, pool.now(), CAUSE)
    standing.in_flight += 1
    return Lease(pool, target, standing, is_retry=False, is_probe=True)
