"""I/O: carries a request through its attempts: who is asked next, and what is said when nobody can answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.gateway.errors import ApiError
from runtime.gateway.exchange import Ask, AttemptError, Client, Course, Exchanges, Result
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing.outcome import CLIENT_LEFT
from runtime.gateway.routing.pool import Lease, Pool
from runtime.gateway.routing.select import Choice, Skipped
from runtime.gateway.routing.table import EndpointIdentity

RETRY_AFTER_S = 5.0
"""Retry-After where nobody knows better."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is sent as a whole."""

    status: int
    body: bytes
    endpoint: str = ""
    attempts: int = 0
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    endpoint: str
    error: AttemptError


class Relay:
    """Carries requests. Used on one event loop."""

    def __init__(self, exchanges: Exchanges, pool: Pool, metrics: Metrics, now: Callable[[], float]) -> None:
        """`now` is the event loop's clock."""
        self._exchanges = exchanges
        self._pool = pool
        self._metrics = metrics
        self._now = now

    async def relay(self, ask: Ask, client: Client) -> Answer | None:
        """Answer a request: return the answer, or None once it was streamed to its end.

        Raises `exchange.ClientLeftError`; an endpoint's troubles end in an answer or in the stream's last event.
        """
        course = Course(self._now(), ask.route.total_s)
        endpoint, outcome = "", CLIENT_LEFT.label
        try:
            endpoint, result, outcome = await self._run(ask, course, client)
        finally:
            self._metrics.request(ask.route.name, endpoint, outcome, self._now() - course.started_at)
        if isinstance(result, Result) and result.body is None:
            return None
        answer = _answer(result, endpoint, course.attempts)
        if not client.is_started:
            return answer
        # The stream was begun with a comment while the client waited; its status cannot be taken back.
        await client.send(b"data: " + b" ".join(answer.body.splitlines()) + b"\n\n")
        return None

    async def _run(self, ask: Ask, course: Course, client: Client) -> tuple[str, Result | ApiError, str]:
        """Try endpoints until one answers; return its name, the result, and the outcome's label."""
        tried: list[EndpointIdentity] = []
        failures: list[_Failure] = []
        skipped: Sequence[Skipped] = ()
        while not tried or self._may_retry(ask, course):
            taken = self._pool.lease(ask.route, tried)
            if isinstance(taken, Choice):
                skipped = taken.skipped
                break
            tried.append(taken.target.identity)
            course.attempts += 1
            ended = await self._attempt(ask, taken, course, client)
            if isinstance(ended, Result):
                return taken.target.name, ended, ended.verdict.label
            failures.append(_Failure(taken.target.name, ended))
        return failures[-1].endpoint if failures else "", _exhausted(ask, failures, skipped), "unavailable"

    def _may_retry(self, ask: Ask, course: Course) -> bool:
        is_in_time = self._now() < course.deadline
        return is_in_time and course.attempts < ask.route.attempts and self._pool.may_retry()

    async def _attempt(self, ask: Ask, lease: Lease, course: Course, client: Client) -> Result | AttemptError:
        label = CLIENT_LEFT.label
        try:
            result = await self._exchanges.attempt(ask, lease, course, client)
        except AttemptError as error:
            label = error.verdict.label
            lease.finish(error.verdict, error.error)
            return error
        else:
            label = result.verdict.label
            lease.finish(result.verdict, result.error)
            return result
        finally:
            lease.release()
            self._metrics.attempt(lease.target.name, label)


def _exhausted(ask: Ask, failures: Sequence[_Failure], skipped: Sequence[Skipped]) -> Result | ApiError:
    """Say why nobody answered. Known but down is never 404, except where every endpoint asked says so itself."""
    if failures and all(failure.error.verdict.absent_s for failure in failures):
        last = failures[-1].error
        return Result(last.verdict, last.status, last.body)
    reasons = {failure.endpoint: failure.error.verdict.label for failure in failures}
    for skip in skipped:
        if skip.reason != "tried":
            reasons.setdefault(skip.name, skip.reason)
    waits = [failure.error.verdict.busy_s for failure in failures if failure.error.verdict.busy_s]
    waits.extend(skip.retry_s for skip in skipped if skip.retry_s is not None)
    named = ", ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no endpoints"
    return ApiError(
        503,
        f"No endpoint of '{ask.route.name}' can answer now ({named}).",
        code="no_endpoint_available",
        retry_after_s=min(waits, default=RETRY_AFTER_S),
    )


def _answer(result: Result | ApiError, endpoint: str, attempts: int) -> Answer:
    if isinstance(result, Result):
        return Answer(result.status, result.body or b"", endpoint, attempts)
    wait_s = None if result.retry_after_s is None else max(1, math.ceil(result.retry_after_s))
    return Answer(result.status, result.body(), endpoint, attempts, wait_s)
