"""I/O: makes the attempts of requests and takes note of how they end; asks a second endpoint too where that pays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from runtime.gateway.attempt import Ask, AttemptError, Client, Course, Made, Result
from runtime.gateway.exchange import Exchanges
from runtime.gateway.ladder import Ladder
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_LEFT, CONTEXT_OVERFLOW, NOT_CONTINUED, OUTRUN, SIMULATED
from runtime.gateway.walk import Failure, Walk

log = logging.getLogger(__name__)

_OK = 200


class Attempts:
    """Makes attempts. Used on one event loop."""

    def __init__(self, exchanges: Exchanges, ladder: Ladder, metrics: Metrics, now: Callable[[], float]) -> None:
        """`now` is the event loop's clock."""
        self._exchanges = exchanges
        self._ladder = ladder
        self._metrics = metrics
        self._now = now
        self._waited_out: set[asyncio.Task[Result | AttemptError]] = set()
        """Attempts whose answers nobody needs any more: how they end says how their endpoints are."""

    def close(self) -> None:
        """End what goes on beside requests."""
        for task in self._waited_out:
            task.cancel()

    async def make(
        self, ask: Ask, lease: Lease, walk: Walk, course: Course, client: Client
    ) -> tuple[str, Result] | None:
        """Ask the leased endpoint, and maybe a second one; return who has answered, and what.

        None where nobody has: the walk knows the failures. `ask` is what this endpoint may have. Raises
        `ClientLeftError`.
        """
        after_s = lease.hedge_after_s() if ask.reading is not None else None
        if after_s is None:
            _note(ask)
            ended = await self._one(ask, lease, course, client)
            if isinstance(ended, Result):
                return lease.target.name, ended
            walk.failed(Failure(lease.target, ended))
            return None
        return await self._race(ask, lease, after_s, walk, course, client)

    async def _race(
        self, ask: Ask, lease: Lease, after_s: float, walk: Walk, course: Course, client: Client
    ) -> tuple[str, Result] | None:
        """Ask a second endpoint too when the first one takes longer than `after_s`; take the first good answer."""
        first = asyncio.create_task(self._one(ask, lease, course, client))
        running = {first: lease}
        asks = {lease: ask}
        try:
            await asyncio.wait(running, timeout=after_s)
            second = None if first.done() else self._ladder.take_beside(walk, lease, course)
            if second is not None:
                course.attempts += 1
                asks[second] = walk.ask_for(second.target)
                running[asyncio.create_task(self._one(asks[second], second, course, client))] = second
            is_hedged = second is not None
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    asked, ended = running.pop(task), task.result()
                    _note(asks[asked])
                    if isinstance(ended, Result):
                        for other, outrun in tuple(running.items()):
                            outrun.ends_as = OUTRUN
                            if outrun.is_doubted and not other.done():
                                del running[other]
                                self._wait_out(other, outrun, asks[outrun], course)
                        if is_hedged:
                            self._metrics.hedge(ask.route.name, "lost" if asked is lease else "won")
                        return asked.target.name, ended
                    walk.failed(Failure(asked.target, ended))
            if is_hedged:
                self._metrics.hedge(ask.route.name, "failed")
            return None
        finally:
            for task in running:
                task.cancel()
            # Their places are free before anybody goes on.
            await asyncio.gather(*running, return_exceptions=True)

    def _wait_out(self, task: asyncio.Task[Result | AttemptError], lease: Lease, ask: Ask, course: Course) -> None:
        """Let an attempt go on within its own limits, without its client: to that it is over."""
        times = (lease.began_at, None, self._now())
        course.made.append(_made(lease, ask, times, OUTRUN.label, None))
        lease.wait_out()
        self._waited_out.add(task)
        task.add_done_callback(self._waited)

    def _waited(self, task: asyncio.Task[Result | AttemptError]) -> None:
        self._waited_out.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an attempt that was waited out failed", exc_info=error)

    async def _one(self, ask: Ask, lease: Lease, course: Course, client: Client) -> Result | AttemptError:
        label, error_text, began_at = CLIENT_LEFT.label, None, self._now()
        course.first_at = None
        try:
            if lease.target.name in ask.failing:
                raise AttemptError(SIMULATED, "failed on request")
            result = await self._exchanges.attempt(ask, lease, course, client)
            if course.is_broken_off and ask.is_rest and result.status != _OK and result.verdict is not CONTEXT_OVERFLOW:
                # The client has not asked for this, and the beginning of its answer is no mistake.
                text = f"{result.verdict.label} (status {result.status})"
                raise AttemptError(NOT_CONTINUED, text, result.status, result.body or b"")
        except AttemptError as error:
            label, error_text = error.verdict.label, error.error
            lease.finish(error.verdict, error.error)
            return error
        except asyncio.CancelledError:
            label = lease.ends_as.label
            raise
        else:
            label, error_text = result.verdict.label, result.error
            lease.finish(result.verdict, result.error, result.tokens)
            return result
        finally:
            lease.release()
            if not lease.is_waited_out:
                times = (began_at, course.first_at, self._now())
                course.made.append(_made(lease, ask, times, label, error_text))
            self._metrics.attempt(lease.target.name, label)


def _made(lease: Lease, ask: Ask, times: tuple[float, float | None, float], outcome: str, error: str | None) -> Made:
    target = lease.target
    return Made(target.name, *times, outcome, error, ask.emulated, ask.dropped, target.identity)


def _note(ask: Ask) -> None:
    """Take note of what the client is told of an attempt beside its answer."""
    if ask.notes is not None:
        ask.notes.emulated, ask.notes.dropped = ask.emulated, ask.dropped
