"""I/O: the stream of one attempt: held until its first content, then passed on event by event to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from runtime.gateway import sse
from runtime.gateway.attempt import AttemptError, Client, Course, Result, keep_alive
from runtime.gateway.continuing import CONTINUED, NotContinuedError
from runtime.gateway.errors import OVERFLOW_CODE, clean, error_body, error_event
from runtime.gateway.mending import mending_of
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import (
    CONTEXT_OVERFLOW,
    NOT_CONTINUED,
    SUCCESS,
    Verdict,
    judge_error_event,
    judge_fault,
)
from runtime.gateway.upstream import Connection, UpstreamError
from runtime.gateway.usage import StreamUsage

TRAILER_S = 1.0
"""How long an endpoint may take to end its answer after `[DONE]`."""


class Stream:
    """One endpoint's stream on its way to one client."""

    __slots__ = (
        "_client",
        "_connection",
        "_continuing",
        "_course",
        "_lease",
        "_metrics",
        "_now",
        "_send",
        "_target",
        "_told",
        "_usage",
    )

    def __init__(
        self,
        connection: Connection,
        usage: StreamUsage,
        lease: Lease,
        course: Course,
        client: Client,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        """`usage` is what the client is told of it; `now` is the event loop's clock."""
        self._connection = connection
        self._lease = lease
        self._target = lease.target
        self._course = course
        self._client = client
        self._metrics = metrics
        self._now = now
        self._usage = usage
        mend = mending_of(lease.target)
        self._continuing = course.continuing
        # Whole events as the endpoint sent them, to events as the client gets them.
        self._told = usage.feed if mend is None else lambda events: usage.feed(mend(events))
        self._send = client.send
        if self._continuing is not None:
            self._send = self._send_heard
            told, feed = self._told, self._continuing.feed
            self._told = lambda events: feed(told(events))

    async def first_content(self, due: float) -> tuple[bytes, sse.Framer] | Result:
        """Hold the stream until its first content; return what was held, and where its last event is cut."""
        expect_type(self._connection, b"text/event-stream")
        commit = sse.Commit()
        while True:
            data = await self._connection.read(due, "no first content", self._course.wake_at)
            if data is None:
                await keep_alive(self._target.name, self._course, self._client)
                continue
            if not data:
                raise UpstreamError("ended early", "no content")
            try:
                found = commit.feed(data)
            except sse.EventTooLargeError as error:
                raise UpstreamError("bad answer", "an event is too large") from error
            if isinstance(found, sse.StreamError):
                return refused_in_stream(found)
            if found is not None:
                self._metrics.malformed(commit.malformed)
                return found, commit.framer()

    async def pass_on(self, committed: tuple[bytes, sse.Framer]) -> Result:
        """Pass the stream on from its first content to its end.

        Where it breaks off, the client is told so. Raises `AttemptError` instead where another endpoint may give the
        answer anew, or go on.
        """
        if not self._client.is_started:
            await self._client.start(self._target.name, self._course.attempts, self._course.fallback)
        if self._course.is_broken_off:
            self._course.is_broken_off = False
            if self._course.rest is not None:
                self._metrics.continued(self._target.name)
                await self._client.send(CONTINUED)
            else:
                self._metrics.restart(self._target.name)
                await self._client.send(sse.restart_event(self._target.name, self._course.attempts))
        tail = sse.Tail()
        try:
            await self._splice(committed, tail)
        except UpstreamError as error:
            message = f"The endpoint '{self._target.name}' broke off in the middle of its answer: {error.fault}."
            return await self._broke_off(judge_fault(error.fault, is_committed=False), str(error), message)
        except sse.StreamFailedError as error:
            text = clean(error.message)
            return await self._broke_off(judge_fault("ended early", is_committed=False), text, text)
        except NotContinuedError as error:
            message = f"The endpoint '{self._target.name}' does not go on with the answer that another one began."
            return await self._broke_off(NOT_CONTINUED, f"{NOT_CONTINUED.label}: {error}", message)
        tokens = tail.completion_tokens() or self._usage.tokens()
        self._metrics.tokens(tokens)
        if self._lease.is_drawn:
            self._lease.reports(tail.cached_tokens())
        return Result(SUCCESS, tokens=tokens)

    async def _broke_off(self, verdict: Verdict, text: str, message: str) -> Result:
        """Leave the answer to another endpoint by `AttemptError`; where none may be asked, end it with `message`."""
        continuing, stopped = self._continuing, replace(verdict, then="stop")
        if continuing is not None and (ending := continuing.ending()) is not None:
            # Nothing is missing but what says so.
            await self._client.send(ending + continuing.summed(self._usage.chunk()) + sse.DONE)
            return Result(stopped, error=text)
        is_possible = continuing is not None and continuing.is_possible
        if is_possible or self._course.may_restart:
            rest = continuing.broke_off() if continuing is not None and is_possible else None
            self._course.broke_off(self._now(), rest)
            raise AttemptError(verdict, text)
        await self._client.send(error_event(message, "upstream_error"))
        return Result(stopped, error=text)

    async def _send_heard(self, events: bytes) -> None:
        try:
            await self._client.send(events)
        except UpstreamError:
            # The client's protocol has no words for it, and what it has got of it is not known.
            if self._continuing is not None:
                self._continuing.give_up()
            raise

    async def _splice(self, committed: tuple[bytes, sse.Framer], tail: sse.Tail) -> None:
        """Copy whole events until the endpoint has ended its answer; raises where it did not."""
        events, framer = committed
        idle_s = self._target.timeouts.idle_s
        while True:
            if events:
                before, failed = sse.cut_error(events)
                tail.feed(before)
                await self._send(self._told(before))
                if failed is not None:
                    raise sse.StreamFailedError(failed.message)
            if events.find(sse.DONE_MARK) >= 0 and tail.is_done():
                # The request ends here, in one step with what its client takes for the end of the answer.
                return self._connection.tell()
            data = await self._connection.read(self._now() + idle_s)
            if not data:
                break
            try:
                events = framer.feed(data)
            except sse.EventTooLargeError as error:
                raise UpstreamError("bad answer", "an event is too large") from error
        return await self._end(framer.rest(), tail)

    async def trailer(self) -> None:
        """Read what is left of the answer to a probe, so that the connection can be used again."""
        due = self._now() + TRAILER_S
        try:
            while await self._connection.read(due):
                pass
        except UpstreamError:
            # The answer is complete; the connection is not used again.
            return

    async def _end(self, rest: bytes, tail: sse.Tail) -> None:
        """Complete the ending that clients wait for, where the answer itself is complete."""
        if rest.strip() and sse.read_event(rest) in {"content", "nothing"}:
            # Only the blank line is missing behind the last event.
            tail.feed(rest + b"\n\n")
            await self._send(self._told(rest + b"\n\n"))
        if not tail.is_finished():
            raise UpstreamError("ended early", "no finish reason")
        if not tail.is_done():
            usage = self._usage.chunk()
            usage = usage if self._continuing is None else self._continuing.summed(usage)
            await self._client.send(usage + sse.DONE)


def expect_type(connection: Connection, expected: bytes) -> None:
    """Check the type of an answer; raises `UpstreamError`."""
    found = connection.headers.get(b"content-type", b"").lower()
    if not found.startswith(expected):
        raise UpstreamError("bad answer", f"content type {clean(found.decode('latin-1'))!r}")
    if connection.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UpstreamError("bad answer", "compressed although identity was asked for")


def refused_in_stream(error: sse.StreamError) -> Result:
    """Judge an error that came before any content; raises `AttemptError` where another endpoint may be asked."""
    verdict = judge_error_event(error.type, error.message.lower())
    status = 400 if verdict.then == "pass" else 502
    code = OVERFLOW_CODE if verdict is CONTEXT_OVERFLOW else error.code
    body = error_body(status, clean(error.message), code=code, param=error.param)
    if verdict.then == "pass":
        return Result(verdict, status, body)
    raise AttemptError(verdict, f"{verdict.label} (in the stream)", status, body)
