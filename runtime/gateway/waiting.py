"""I/O: what a request waits for before anybody is asked: a place at an endpoint, or the successor of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtime.gateway.attempt import Ask, Client, Course, keep_alive
from runtime.gateway.errors import ApiError
from runtime.gateway.holds import Holds
from runtime.gateway.ladder import Ladder
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.queues import Queues
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.table import Route
from runtime.gateway.walk import RETRY_AFTER_S, Walk

SHORTEST_WAIT_S = 0.1
"""Between two looks of a held request at endpoints that said when they are free again."""


class Waits:
    """Lets requests wait. Used on one event loop."""

    def __init__(
        self,
        ladder: Ladder,
        queues: Queues,
        holds: Holds,
        metrics: Metrics,
        find_route: Callable[[str], Route | None],
        now: Callable[[], float],
    ) -> None:
        """`find_route` looks a name up in the newest table; `now` is the event loop's clock."""
        self._ladder = ladder
        self._queues = queues
        self._holds = holds
        self._metrics = metrics
        self._find_route = find_route
        self._now = now

    async def for_place(
        self, ask: Ask, walk: Walk, course: Course, client: Client, *, is_again: bool = False
    ) -> Lease | ApiError | None:
        """Return a place at the next endpoint, waiting in line where all that could answer are only busy.

        None where nobody is left to wait for, an error where the line is full. Who was held before (`is_again`) is not
        refused, and waits in line also where the files allow none. Raises `ClientLeftError`.
        """
        name = ask.route.name
        if not self._queues.length(name):
            lease = self._ladder.take(walk, course)
            if lease is not None:
                return lease
        if not walk.route.queue and not is_again:
            # Without a line nobody has a better right to a place.
            return self._ladder.take(walk, course) if self._queues.length(name) else None
        if walk.queue_until is None:
            walk.queue_until = min(self._now() + walk.route.queue_s, course.deadline)
        walk.forgive()
        # Those who wait already come first, should something have become free without an event.
        self._queues.changed()
        found = self._look(ask, walk, course)
        if not isinstance(found, float):
            return found
        return await self._in_line(ask, walk, course, client, is_again=is_again)

    async def _in_line(
        self, ask: Ask, walk: Walk, course: Course, client: Client, *, is_again: bool
    ) -> Lease | ApiError | None:
        name, route = ask.route.name, walk.route
        waiter = self._queues.join(
            name,
            len(ask.body.raw),
            route.queue,
            lambda: self._look(ask, walk, course),
            is_plain=not (walk.tried or walk.too_short or walk.attempts)
            and route is walk.origin
            and not walk.has_demands
            and not any(rung.is_strict for rung in route.rungs()),
            is_again=is_again,
        )
        waiting = self._queues.length(name)
        if waiter is None:
            self._metrics.queue_refused(name)
            message = f"'{name}' is busy, and {waiting} requests wait already."
            return ApiError(429, message, code="queue_full", retry_after_s=self._line_s(walk, waiting))
        lease: Lease | None = None
        try:
            await self._until_done(waiter.future, ask, walk, course, client)
            if waiter.future.done():
                lease = waiter.future.result()
            else:
                walk.line_s = self._line_s(walk, waiting)
            return lease
        finally:
            self._queues.leave(waiter, with_lease=lease is not None)

    async def _until_done(
        self, future: asyncio.Future[Lease | None], ask: Ask, walk: Walk, course: Course, client: Client
    ) -> None:
        due = course.deadline if walk.queue_until is None else walk.queue_until
        while not future.done() and (left_s := due - self._now()) > 0:
            if ask.body.is_stream:
                left_s = min(left_s, max(0.0, course.wake_at - self._now()))
            await asyncio.wait((future,), timeout=left_s)
            if not future.done() and ask.body.is_stream and self._now() >= course.wake_at:
                await keep_alive("", course, client)

    def _look(self, ask: Ask, walk: Walk, course: Course) -> Lease | float | None:
        """Take a place where there is one; see `queues.Take`."""
        newest = self._find_route(ask.body.model)
        if newest is not None and newest is not walk.origin:
            walk.move(newest)
        lease = self._ladder.take(walk, course)
        until = course.deadline if walk.queue_until is None else walk.queue_until
        return lease or self._ladder.hope_s(walk, until - self._now())

    def _line_s(self, walk: Walk, waiting: int) -> float:
        """Return how long those who wait now will take, as far as it is known."""
        rate = self._ladder.rate(walk.route)
        return (waiting + 1) / rate if rate > 0 else (walk.wait_s() or RETRY_AFTER_S)

    async def for_successor(
        self, ask: Ask, walk: Walk, course: Course, client: Client, *, is_again: bool
    ) -> Route | ApiError:
        """Hold a request until the table changes or an endpoint may be free; return the route to try then."""
        name = ask.route.name
        with self._holds.place(name, len(ask.body.raw), is_again=is_again) as is_placed:
            if not is_placed:
                message = f"'{name}' is being replaced, and as many requests as can be held wait already."
                return ApiError(503, message, code="no_endpoint_available", retry_after_s=RETRY_AFTER_S)
            # The table may have changed during an attempt; then there is nothing to wait for.
            if self._find_route(ask.body.model) is walk.origin:
                await self._held(ask, walk, course, client)
        found = self._find_route(ask.body.model)
        if found is None:
            message = f"The model '{ask.body.model}' does not exist any more; GET /v1/models lists what does."
            return ApiError(404, message, code="model_not_found", param="model")
        return found

    async def _held(self, ask: Ask, walk: Walk, course: Course, client: Client) -> None:
        mark = self._holds.mark()
        wait_s, until = walk.wait_s(), walk.held_until()
        due = min(course.deadline, until) if until > self._now() else course.deadline
        if wait_s is not None:
            due = min(due, self._now() + max(wait_s, SHORTEST_WAIT_S))
        while (left_s := due - self._now()) > 0:
            if ask.body.is_stream:
                left_s = min(left_s, max(0.0, course.wake_at - self._now()))
            if await self._holds.wait(mark, left_s):
                return
            if ask.body.is_stream and self._now() >= course.wake_at:
                await keep_alive("", course, client)
