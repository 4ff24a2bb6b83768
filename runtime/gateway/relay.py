"""I/O: carries a request through its attempts: who is asked next, and what is said when nobody can answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from runtime.gateway.attempt import Ask, AttemptError, Client, Course, Made, Result, keep_alive
from runtime.gateway.errors import ApiError
from runtime.gateway.exchange import Exchanges
from runtime.gateway.holds import Holds
from runtime.gateway.ladder import Ladder
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing.outcome import CLIENT_LEFT, SKIPPED
from runtime.gateway.routing.pool import Lease, Pool
from runtime.gateway.routing.table import Route
from runtime.gateway.walk import RETRY_AFTER_S, Failure, Walk, exhausted

SKIP = "skip"
"""What the answer to a task that was left undone names as its fallback."""
SHORTEST_WAIT_S = 0.1
"""Between two looks of a held request at endpoints that said when they are free again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is sent as a whole."""

    status: int
    body: bytes
    endpoint: str = ""
    attempts: int = 0
    retry_after_s: int | None = None
    fallback: str = ""
    """The service or role that answered in place of the one that was wanted."""


class Relay:
    """Carries requests. Used on one event loop."""

    def __init__(
        self,
        exchanges: Exchanges,
        pool: Pool,
        metrics: Metrics,
        holds: Holds,
        find_route: Callable[[str], Route | None],
        now: Callable[[], float],
    ) -> None:
        """`find_route` looks a name up in the newest table; `now` is the event loop's clock."""
        self._exchanges = exchanges
        self._ladder = Ladder(pool, now)
        self._metrics = metrics
        self._holds = holds
        self._find_route = find_route
        self._now = now

    async def relay(self, ask: Ask, client: Client) -> Answer | None:
        """Answer a request: return the answer, or None once it was streamed to its end.

        Raises `attempt.ClientLeftError`; an endpoint's troubles end in an answer or in the stream's last event.
        """
        course = Course(self._now(), ask.route.total_s)
        endpoint, outcome = "", CLIENT_LEFT.label
        try:
            endpoint, result, outcome = await self._run(ask, course, client)
        finally:
            self._ended(ask, course, endpoint, outcome)
        if isinstance(result, Result) and result.body is None:
            return None
        answer = _answer(result, endpoint, course)
        if not client.is_started:
            return answer
        # The stream was begun with a comment while the client waited; its status cannot be taken back.
        await client.send(b"data: " + b" ".join(answer.body.splitlines()) + b"\n\n")
        return None

    async def _run(self, ask: Ask, course: Course, client: Client) -> tuple[str, Result | ApiError, str]:
        """Try endpoints until one answers; return its name, the result, and the outcome's label."""
        walk = Walk(ask, ask.route)
        was_held = False
        while True:
            lease, wait_s = self._ladder.take(walk, course), 0.0
            if lease is None:
                lease, wait_s = self._ladder.take_loading(walk, course)
            if lease is not None:
                course.attempts += 1
                asked = walk.ask_for(lease.target) if lease.target.is_strict else ask
                asked = replace(asked, wait_s=wait_s) if asked.wait_s != wait_s else asked
                ended = await self._attempt(asked, lease, course, client)
                if isinstance(ended, Result):
                    return lease.target.name, ended, ended.verdict.label
                walk.tried.append(lease.target.identity)
                walk.failures.append(Failure(lease.target.name, ended))
                continue
            if ask.skipped is not None and any(rung.is_skipped for rung in walk.route.rungs()):
                course.fallback = SKIP
                return "", Result(SKIPPED, body=ask.skipped()), SKIPPED.label
            # Who was held once waits on while endpoints are only busy: all who were held arrive at the same moment.
            is_replacing = walk.held_until() > self._now()
            if not (is_replacing or (was_held and walk.wait_s() is not None)) or self._is_over(course):
                break
            held = await self._hold(ask, walk, course, client, is_again=was_held)
            if isinstance(held, ApiError):
                return "", held, "unavailable"
            walk, was_held = Walk(ask, held), True
        course.fallback = ""
        result, outcome = exhausted(walk)
        return walk.failures[-1].endpoint if walk.failures else "", result, outcome

    def _ended(self, ask: Ask, course: Course, endpoint: str, outcome: str) -> None:
        """Take note of a request that is over, however it ended; `course` knows its attempts."""
        self._metrics.request(ask.route.name, endpoint, outcome, self._now() - course.started_at)

    def _is_over(self, course: Course) -> bool:
        return self._now() >= course.deadline

    async def _hold(self, ask: Ask, walk: Walk, course: Course, client: Client, *, is_again: bool) -> Route | ApiError:
        """Hold a request until the table changes or an endpoint may be free; return the route to try then."""
        name = ask.route.name
        with self._holds.place(name, len(ask.body.raw), is_again=is_again) as is_placed:
            if not is_placed:
                message = f"'{name}' is being replaced, and as many requests as can be held wait already."
                return ApiError(503, message, code="no_endpoint_available", retry_after_s=RETRY_AFTER_S)
            # The table may have changed during an attempt; then there is nothing to wait for.
            if self._find_route(ask.body.model) is walk.route:
                await self._wait(ask, walk, course, client)
        found = self._find_route(ask.body.model)
        if found is None:
            message = f"The model '{ask.body.model}' does not exist any more; GET /v1/models lists what does."
            return ApiError(404, message, code="model_not_found", param="model")
        return found

    async def _wait(self, ask: Ask, walk: Walk, course: Course, client: Client) -> None:
        wait_s, until = walk.wait_s(), walk.held_until()
        due = min(course.deadline, until) if until > self._now() else course.deadline
        if wait_s is not None:
            due = min(due, self._now() + max(wait_s, SHORTEST_WAIT_S))
        while (left_s := due - self._now()) > 0:
            if ask.body.is_stream:
                left_s = min(left_s, max(0.0, course.wake_at - self._now()))
            if await self._holds.wait(left_s):
                return
            if ask.body.is_stream and self._now() >= course.wake_at:
                await keep_alive("", course, client)

    async def _attempt(self, ask: Ask, lease: Lease, course: Course, client: Client) -> Result | AttemptError:
        label, error_text, began_at = CLIENT_LEFT.label, None, self._now()
        course.first_at = None
        try:
            result = await self._exchanges.attempt(ask, lease, course, client)
        except AttemptError as error:
            label, error_text = error.verdict.label, error.error
            lease.finish(error.verdict, error.error)
            return error
        else:
            label, error_text = result.verdict.label, result.error
            lease.finish(result.verdict, result.error, result.tokens)
            return result
        finally:
            lease.release()
            course.made.append(Made(lease.target.name, began_at, course.first_at, self._now(), label, error_text))
            self._metrics.attempt(lease.target.name, label)


def _answer(result: Result | ApiError, endpoint: str, course: Course) -> Answer:
    if isinstance(result, Result):
        return Answer(result.status, result.body or b"", endpoint, course.attempts, fallback=course.fallback)
    wait_s = None if result.retry_after_s is None else max(1, math.ceil(result.retry_after_s))
    return Answer(result.status, result.body(), endpoint, course.attempts, wait_s)
