"""I/O: one attempt: a request to one endpoint and its answer, up to the stream's last byte.

Until the first content of a stream is written to the client nothing is sent, so that another endpoint can take over
unseen. After it the client gets exactly what the endpoint sent, and an error event where that broke off. Whatever ends
the task (the client left, the gateway stops) closes the endpoint's connection, which frees the endpoint.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable

from runtime.gateway import sse
from runtime.gateway.adapters.collect import Collector
from runtime.gateway.adapters.emulation.gathering import Gathering
from runtime.gateway.attempt import (
    ODD_ANSWER,
    Ask,
    AttemptError,
    BadAnswerError,
    Client,
    Course,
    Result,
    WrongDimensionError,
    keep_alive,
)
from runtime.gateway.bodies import with_model
from runtime.gateway.connections import Connections, origin_of
from runtime.gateway.emulating import OneCallClient, emulated
from runtime.gateway.errors import cleaned_error, overflow_error
from runtime.gateway.mending import mending_of
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.parts import in_parts
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import (
    CONTEXT_OVERFLOW,
    NOT_SUPPORTED,
    OUT_OF_TIME,
    SUCCESS,
    WRONG_DIMENSION,
    Fault,
    judge_fault,
    judge_status,
)
from runtime.gateway.routing.table import EndpointIdentity, Target
from runtime.gateway.steps import in_steps
from runtime.gateway.streaming import Stream, expect_type, refused_in_stream
from runtime.gateway.upstream import Connection, UpstreamError
from runtime.gateway.usage import StreamUsage, completed
from schemas.prefer import HEADER as PREFER_HEADER
from schemas.prefer import PROBE_HEADER, wait_preference

LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed."""
LARGEST_READ_HERE = 256 * 1024
"""Bytes of vectors or scores that are read on the event loop; larger answers would keep all others waiting."""
LARGEST_ERROR = 64 * 1024
ERROR_BODY_S = 5.0
"""How long the body of an error may take."""
OWN_SHARE = 0.8
"""Share of its own limit that an endpoint must have had before the end of the request's time is its fault."""
PATIENCE = 2.0
"""How many times the usual limit the first content may take where the client waits for the whole answer anyway, and the
files do not say how long: nobody looks on, and a machine that is slow for once should not lose its work."""
_TIMED = frozenset({"no first content", "connect timeout", "stalled"})

_OK = 200


class Exchanges:
    """Makes attempts. Used on one event loop."""

    def __init__(self, connections: Connections, metrics: Metrics, now: Callable[[], float]) -> None:
        """`now` is the event loop's clock."""
        self._connections = connections
        self._metrics = metrics
        self._now = now

    async def attempt(self, ask: Ask, lease: Lease, course: Course, client: Client) -> Result:
        """Send a request to a leased endpoint and answer its client; raises `AttemptError` and `ClientLeftError`."""
        if ask.steps is not None:
            return await in_steps(lambda step: self.attempt(step, lease, course, client), ask.steps(lease.target))
        if ask.is_one_call:
            client = OneCallClient(client)
        if ask.gathering is not None:
            return await self._gathered(ask.gathering, ask, lease, course, client)
        if ask.parts is not None:
            return await in_parts(
                lambda part, shared: self.attempt(part, lease, shared, client), ask.parts, lease, course, self._now()
            )
        target = lease.target
        if lease.is_broken:
            raise AttemptError(judge_fault("refused", is_committed=False), "broken by a drill")
        lease.sends(len(ask.body.raw))
        first_due = course.deadline
        if ask.body.is_stream or ask.body.is_collected or ask.reading is not None:
            # Without a stream the first content is the whole answer, however long that takes to generate. Vectors and
            # scores are not generated: they come at once or not at all.
            limit_s = lease.first_limit_s
            if ask.body.is_collected and target.timeouts.first_token_s is None:
                limit_s *= PATIENCE
            first_due = min(first_due, self._now() + limit_s + ask.wait_s)
        connection: Connection | None = None
        try:
            connection = await self._open(ask, target, course, client, first_due)
            if connection.status != _OK:
                return await self._refusal(connection, may_pass_on=ask.reading is None)
            if not ask.body.is_stream:
                if ask.body.is_collected:
                    result = await self._collected(connection, ask, lease, course, first_due)
                else:
                    result = await self._whole(connection, ask, target, first_due)
                if lease.is_drawn:
                    lease.reports(sse.cached_tokens(result.body or b""))
                return result
            usage = StreamUsage(ask.body.document, wants=ask.wants_usage)
            stream = Stream(connection, usage, lease, course, client, self._metrics, self._now)
            committed = await stream.first_content(first_due)
            if isinstance(committed, Result):
                return committed
            lease.confirm()
            if ask.is_probe:
                await stream.trailer()
                return Result(SUCCESS)
            course.first_at = self._now()
            self._metrics.first_content(ask.route.name, course.first_at - course.started_at)
            return await stream.pass_on(committed)
        except UpstreamError as error:
            verdict = judge_fault(error.fault, is_committed=False)
            if error.fault in _TIMED and self._has_run_out(lease, course):
                verdict = OUT_OF_TIME
            raise AttemptError(verdict, str(error)) from error
        finally:
            if connection is not None:
                self._connections.give_back(origin_of(target.identity), connection)

    async def _gathered(self, gathering: Gathering, ask: Ask, lease: Lease, course: Course, client: Client) -> Result:
        async def send(part: Ask, shared: Course) -> Result:
            return await self.attempt(part, lease, shared, client)

        return await emulated(send, gathering, ask, lease, course, client, self._metrics, self._now())

    def _has_run_out(self, lease: Lease, course: Course) -> bool:
        """Tell whether the time of the request is over, spent in line or elsewhere, and not that of the endpoint."""
        now, limit_s = self._now(), min(lease.first_limit_s, lease.target.timeouts.total_s)
        return now >= course.deadline - 0.01 and now - lease.began_at < OWN_SHARE * limit_s

    async def _open(self, ask: Ask, target: Target, course: Course, client: Client, first_due: float) -> Connection:
        """Send the request and wait for the answer's head.

        A kept connection may have been closed by the endpoint just before: when it dies without one byte of an answer,
        the request is sent once more on a new one.
        """
        origin, body = origin_of(target.identity), with_model(ask.body, target.upstream_model)
        head = _head(ask, target, len(body))
        is_fresh = False
        while True:
            connect_s = min(target.timeouts.connect_s, max(first_due - self._now(), 0.001))
            connection = await self._connections.take(origin, connect_s, is_fresh=is_fresh)
            try:
                connection.send(head, body)
                wake_at = course.wake_at if ask.body.is_stream else None
                while not await connection.wait_head(first_due, wake_at):
                    wake_at = await keep_alive(target.name, course, client)
            except UpstreamError as error:
                is_stale = connection.is_reused and not connection.has_answered and error.fault == "reset"
                self._connections.give_back(origin, connection)
                if not is_stale:
                    raise
                is_fresh = True
            except BaseException:
                self._connections.give_back(origin, connection)
                raise
            else:
                return connection

    async def _refusal(self, connection: Connection, *, may_pass_on: bool) -> Result:
        """Judge an answer that is no success: pass it on, or leave the request to another endpoint.

        Without `may_pass_on` another endpoint is asked also where one cannot do such a thing at all.
        """
        retry_after = connection.headers.get(b"retry-after", b"").decode("latin-1") or None
        try:
            raw = await connection.read_all(LARGEST_ERROR, ERROR_BODY_S, self._now() + ERROR_BODY_S)
        except UpstreamError:
            raw = b""
        verdict = judge_status(connection.status, retry_after, raw.decode(errors="replace").lower())
        status = connection.status if connection.status >= 400 else 502
        if verdict is CONTEXT_OVERFLOW:
            # Whatever the endpoint calls it: asking again will not help.
            status, body = 400, overflow_error(raw)
        else:
            body = cleaned_error(status, raw)
        if verdict.then == "pass" and (may_pass_on or verdict.label != NOT_SUPPORTED):
            return Result(verdict, status, body)
        raise AttemptError(verdict, f"{verdict.label} (status {connection.status})", status, body)

    async def _whole(self, connection: Connection, ask: Ask, target: Target, due: float) -> Result:
        expect_type(connection, b"application/json")
        body = await connection.read_all(
            LARGEST_ANSWER, target.timeouts.idle_s, math.inf if ask.reading is None else due
        )
        if ask.reading is None and not body.lstrip()[:1] == b"{":
            raise UpstreamError("bad answer", "no JSON object")
        if ask.reading is not None:
            try:
                if len(body) > LARGEST_READ_HERE:
                    body = await asyncio.to_thread(ask.reading.read, body, connection.headers)
                else:
                    body = ask.reading.read(body, connection.headers)
            except WrongDimensionError as error:
                raise AttemptError(WRONG_DIMENSION, str(error)) from error
            except BadAnswerError as error:
                raise UpstreamError("bad answer", str(error)) from error
            except ODD_ANSWER as error:
                raise UpstreamError("bad answer", type(error).__name__) from error
            tokens = 0
        else:
            body, tokens = completed(body, ask.body.document)
        self._metrics.tokens(tokens)
        return Result(SUCCESS, body=body, tokens=tokens)

    async def _collected(
        self, connection: Connection, ask: Ask, lease: Lease, course: Course, first_due: float
    ) -> Result:
        """Read a stream to its end for a client that wants one document: until then another endpoint can take over."""
        expect_type(connection, b"text/event-stream")
        framer, collector = sse.Framer(), Collector(is_chat=ask.path.endswith("/chat/completions"))
        fault: Fault = "no first content"
        due, size = first_due, 0
        while data := await connection.read(due, fault):
            size += len(data)
            if size > LARGEST_ANSWER:
                raise UpstreamError("bad answer", f"more than {LARGEST_ANSWER} bytes")
            try:
                events = sse.split_events(framer.feed(data))
            except sse.EventTooLargeError as error:
                raise UpstreamError("bad answer", "an event is too large") from error
            for event in events:
                sign = collector.feed(event)
                if isinstance(sign, sse.StreamError):
                    return refused_in_stream(sign)
                if sign == "content" and fault != "stalled":
                    fault = "stalled"
                    lease.confirm()
                    course.first_at = self._now()
            if fault == "stalled":
                due = self._now() + lease.target.timeouts.idle_s
        body = collector.answer()
        if body is None:
            raise UpstreamError("ended early", "no finish reason")
        mend = mending_of(lease.target)
        body, tokens = completed(body if mend is None else mend(body), ask.body.document)
        self._metrics.tokens(tokens)
        return Result(SUCCESS, body=body, tokens=tokens)


def _head(ask: Ask, target: Target, size: int) -> bytes:
    is_stream = ask.body.is_stream or ask.body.is_collected
    head = f"{_fixed_lines(target.identity, ask.path, is_stream)}{size}\r\nx-request-id: {ask.request_id}\r\n"
    if ask.is_probe:
        head += f"{PROBE_HEADER}: 1\r\n"
    if ask.wait_s >= 1.0:
        head += f"{PREFER_HEADER}: {wait_preference(ask.wait_s)}\r\n"
    if target.token is not None:
        head += f"authorization: Bearer {target.token}\r\n"
    return f"{head}\r\n".encode("ascii")


@functools.lru_cache(1024)
def _fixed_lines(identity: EndpointIdentity, path: str, is_stream: bool) -> str:
    """Return what all requests to an endpoint begin with, up to the size of the body."""
    host = f"[{identity.host}]" if ":" in identity.host else identity.host
    lines = (
        f"POST {identity.base_path}{path} HTTP/1.1",
        f"host: {host}:{identity.port}",
        "content-type: application/json",
        f"accept: {'text/event-stream' if is_stream else 'application/json'}",
        "accept-encoding: identity",
        "content-length: ",
    )
    return "\r\n".join(lines)
