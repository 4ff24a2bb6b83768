"""Pure: takes a place on the next endpoint of a request: down the ladder of its route, each endpoint once."""

from __future__ import annotations

import math
from collections.abc import Callable

from runtime.gateway.attempt import Course
from runtime.gateway.routing.breaker import Closed
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.select import PASSING, RATE_S
from runtime.gateway.routing.table import Route
from runtime.gateway.walk import Walk


class Ladder:
    """Leases places for requests that are on their way. Used on one event loop; nothing here waits."""

    def __init__(self, pool: Pool, now: Callable[[], float]) -> None:
        """`now` is the event loop's clock."""
        self._pool = pool
        self._now = now

    def take(self, walk: Walk, course: Course) -> Lease | None:
        """Take a place on the next endpoint down the ladder; None when nobody is left or nothing more may be tried.

        Only when nobody else is left, a request is risked on an endpoint that is waiting for its trial.
        """
        if walk.tried and (self._now() >= course.deadline or not self._pool.may_retry(walk.route)):
            return None
        for may_risk in (False, True):
            walk.skipped.clear()
            has_trial = False
            rung: Route | None = walk.route
            number = 0
            while rung is not None:
                made = walk.attempts.get(number, 0)
                if made < rung.attempts:
                    unfit = walk.unfit(rung)
                    taken = self._pool.lease(
                        rung, walk.tried, unfit=unfit, may_risk=may_risk, prefix=walk.prefix_for(rung), asked=walk.route
                    )
                    if isinstance(taken, Lease):
                        course.skipped = (*walk.skipped, *taken.passed_over)
                        walk.attempts[number] = made + 1
                        course.fallback = walk.instead if rung is walk.route else rung.name
                        return taken
                    walk.skipped.extend(taken.skipped)
                    has_trial = has_trial or taken.trial is not None
                rung, number = rung.fallback, number + 1
            if not has_trial:
                break
        return None

    def take_beside(self, walk: Walk, lease: Lease, course: Course) -> Lease | None:
        """Take a place on a second endpoint for a request that another one is answering; None where there is none."""
        if self._now() >= course.deadline or not self._pool.may_retry(walk.route):
            return None
        for number, rung in enumerate(walk.route.rungs()):
            if lease.target not in rung.targets():
                continue
            if walk.attempts.get(number, 0) >= rung.attempts:
                return None
            taken = self._pool.lease(
                rung,
                [*walk.tried, lease.target.identity],
                unfit=walk.unfit(rung),
                may_risk=False,
                asked=walk.route,
            )
            if isinstance(taken, Lease):
                walk.attempts[number] = walk.attempts.get(number, 0) + 1
                return taken
            return None
        return None

    def hope_s(self, walk: Walk, left_s: float) -> float | None:
        """Return how soon an endpoint that is only busy may have a place by itself, within the seconds that are left.

        It is infinity where the end of another request is waited for, and None where nobody is worth waiting for. The
        walk knows why the endpoints were passed over just now.
        """
        if left_s <= 0 or (walk.tried and not self._pool.may_retry(walk.route)):
            return None
        skipped = [skip for skip in walk.skipped if skip.reason in PASSING]
        timed = [skip.retry_s for skip in skipped if skip.reason != "full" and skip.retry_s is not None]
        soon = [seconds for seconds in timed if seconds <= left_s]
        if any(skip.reason == "full" for skip in skipped):
            soon.append(math.inf)
        return min(soon, default=None)

    def rate(self, route: Route) -> float:
        """Return how many requests a second the endpoints of a route answer when all their places are taken.

        0 where nobody has a limit, or none has answered yet.
        """
        total = 0.0
        for target in route.targets():
            standing = self._pool.standings.get(target.identity)
            if standing is None or not isinstance(standing.breaker, Closed):
                continue
            service_s = standing.pace.service_s
            if target.max_in_flight is not None and service_s:
                by_places = target.max_in_flight / service_s
                total += by_places if target.rpm is None else min(by_places, target.rpm / RATE_S)
            elif target.rpm is not None:
                total += target.rpm / RATE_S
        return total

    def take_panic(self, walk: Walk, course: Course) -> Lease | None:
        """Take a place on an endpoint whose breaker is open, where all are and the files say to try one all the same.

        That is never better than a fallback.
        """
        route = walk.route
        has_fallback = route.fallback is not None or route.is_skipped
        if has_fallback or walk.attempts.get(0, 0) >= route.attempts or self._now() >= course.deadline:
            return None
        unfit = walk.unfit(route)
        lease = self._pool.lease_panic(route, walk.tried, unfit)
        if lease is not None:
            walk.attempts[0] = walk.attempts.get(0, 0) + 1
            course.fallback = walk.instead
        return lease

    def take_loading(self, walk: Walk, course: Course) -> tuple[Lease | None, float]:
        """Take a place on an endpoint that is loading, once nobody else is left; return it and how long to wait there.

        It says how far it is, so that the client can be told. A client that waits is answered when it is ready.
        """
        wait_s = max(0.0, min(walk.wait_wish_s - (self._now() - course.started_at), course.deadline - self._now() - 1))
        if walk.has_waited or self._now() >= course.deadline:
            return None, 0.0
        for rung in walk.route.rungs():
            unfit = walk.unfit(rung)
            for target in rung.targets():
                was_tried = target.identity in walk.tried
                if target.identity in unfit or (was_tried and wait_s < 1.0):
                    continue
                lease = self._pool.lease_loading(walk.route, target, is_retry=was_tried)
                if lease is not None:
                    walk.has_waited = True
                    course.fallback = walk.instead if rung is walk.route else rung.name
                    return lease, wait_s
        return None, 0.0
