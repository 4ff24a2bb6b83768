"""I/O: carries a request through its attempts: who is asked next, and what is said when nobody can answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from runtime.gateway.attempt import Ask, Client, Course, Result, is_emulated
from runtime.gateway.attempts import Attempts
from runtime.gateway.continuing import Continuing, may_be_continued
from runtime.gateway.errors import ApiError
from runtime.gateway.exchange import Exchanges
from runtime.gateway.facts.known import UNKNOWN, Facts
from runtime.gateway.holds import Holds
from runtime.gateway.ladder import Ladder
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.queues import Queues
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_LEFT, SKIPPED
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import Route, Target
from runtime.gateway.waiting import Waits
from runtime.gateway.walk import Walk, exhausted

SKIP = "skip"
"""What the answer to a task that was left undone names as its fallback."""


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
        queues: Queues,
        find_route: Callable[[str], Route | None],
        now: Callable[[], float],
        note: Callable[[Ask, Course, str, str, float], None] = lambda *_: None,
        facts_of: Callable[[Target], Facts] = lambda _: UNKNOWN,
    ) -> None:
        """`find_route` looks a name up in the newest table; `now` is the event loop's clock.

        `note` is told of every request that is over: what came of it, who answered, the outcome's label and when.
        """
        self._ladder = Ladder(pool, now)
        self._waits = Waits(self._ladder, queues, holds, metrics, find_route, now)
        self._attempts = Attempts(exchanges, self._ladder, metrics, now)
        self._metrics = metrics
        self._now = now
        self._note = note
        self._facts_of = facts_of

    def close(self) -> None:
        """End what goes on beside requests."""
        self._attempts.close()

    async def relay(self, ask: Ask, client: Client) -> Answer | None:
        """Answer a request: return the answer, or None once it was streamed to its end.

        Raises `attempt.ClientLeftError`; an endpoint's troubles end in an answer or in the stream's last event.
        """
        may_restart = ask.route.may_restart and ask.body.is_stream and ask.may_restart
        may_continue = ask.route.may_continue and ask.body.is_stream and may_be_continued(ask)
        continuing = Continuing(ask) if may_continue else None
        course = Course(self._now(), ask.route.total_s, may_restart=may_restart, continuing=continuing)
        endpoint, outcome = "", CLIENT_LEFT.label
        try:
            endpoint, result, outcome = await self._run(ask, course, client)
            course.status = result.status
            course.tokens = result.tokens if isinstance(result, Result) else 0
            if course.tokens and course.continuing is not None:
                course.tokens += course.continuing.before
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
        walk = Walk(ask, ask.route, self._facts_of)
        was_held = False
        while True:
            place, wait_s = await self._waits.for_place(ask, walk, course, client, is_again=was_held), 0.0
            if place is None:
                place, wait_s = self._ladder.take_loading(walk, course)
            place = place or self._ladder.take_panic(walk, course)
            if isinstance(place, Lease):
                course.attempts += 1
                asked = walk.ask_for(place.target)
                asked = replace(asked, wait_s=wait_s) if asked.wait_s != wait_s else asked
                if course.continuing is not None:
                    course.continuing.is_emulated = is_emulated(asked)
                answered = await self._attempts.make(asked, place, walk, course, client)
                if answered is not None and not walk.go_longer(place.target, answered[1]):
                    return *answered, answered[1].verdict.label
                if course.is_broken_off:
                    walk.go_on(course.rest or ask)
                continue
            if ask.skipped is not None and any(rung.is_skipped for rung in walk.route.rungs()):
                course.fallback = SKIP
                return "", Result(SKIPPED, body=ask.skipped()), SKIPPED.label
            if place is not None:
                return "", place, "queue full"
            # Who was held once waits on while endpoints are only busy: all who were held arrive at the same moment.
            is_replacing = walk.held_until() > self._now()
            if not (is_replacing or (was_held and walk.wait_s() is not None)) or self._now() >= course.deadline:
                break
            held = await self._waits.for_successor(ask, walk, course, client, is_again=was_held)
            if isinstance(held, ApiError):
                return "", held, "unavailable"
            walk, was_held = Walk(course.rest or ask, held, self._facts_of), True
        course.fallback = ""
        course.skipped = tuple(walk.skipped)
        result, outcome = exhausted(walk)
        return walk.failures[-1].endpoint if walk.failures else "", result, outcome

    def _ended(self, ask: Ask, course: Course, endpoint: str, outcome: str) -> None:
        """Take note of a request that is over, however it ended; `course` knows its attempts."""
        now = self._now()
        self._metrics.request(ask.route.name, endpoint, outcome, now - course.started_at)
        self._note(ask, course, endpoint, outcome, now)


def _answer(result: Result | ApiError, endpoint: str, course: Course) -> Answer:
    if isinstance(result, Result):
        return Answer(result.status, result.body or b"", endpoint, course.attempts, fallback=course.fallback)
    wait_s = None if result.retry_after_s is None else max(1, math.ceil(result.retry_after_s))
    return Answer(result.status, result.body(), endpoint, course.attempts, wait_s)
