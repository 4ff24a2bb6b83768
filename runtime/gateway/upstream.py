"""I/O: one HTTP/1.1 connection to an endpoint, an asyncio protocol on httptools. The only importer of httptools.

A connection carries one exchange at a time. Everything that is wrong with it ends in `UpstreamError` with a fault that
`routing.outcome` can judge; the caller then closes it. Bodies are handed on as they arrive and never rebuilt.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools

from runtime.gateway.routing.outcome import Fault

LARGEST_HEAD = 64 * 1024
"""Bytes of an answer's status line and headers, informational answers included."""
PAUSE_ABOVE = 256 * 1024
"""Bytes that wait to be read before the endpoint is held back."""

COPIED = 64 * 1024
"""Bytes of a request body up to which copying it behind the head is cheaper than writing two pieces."""

_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class UpstreamError(Exception):
    """An exchange with an endpoint broke."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault}: {detail}" if detail else fault)
        self.fault: Fault = fault


class Connection(asyncio.Protocol):
    """One connection, used by one task at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._is_paused = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._due = 0.0
        self._due_fault: Fault = "stalled"
        self._wake_at: float | None = None
        self._then: Callable[[], None] | None = None
        """Called when an answer is over whose end nobody waits for."""
        self._reset()
        self.made_at = loop.time()
        """When it was opened, on the loop's clock."""
        self.is_reused = False
        """Whether it has carried an exchange before this one."""

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """By lower-case name; of a repeated header the last one."""
        self.has_answered = False
        """Whether any byte of an answer has arrived."""
        self.is_complete = False
        self.is_told = False
        """Whether its client has all of an answer, of which only the end may be missing."""
        self._head_size = 0
        self._has_head = False
        self._ends_with_connection = False
        self._is_persistent = False

    # --- what the owner calls

    @property
    def is_usable(self) -> bool:
        """Tell whether another exchange may be sent: connected, the last answer read to its end, nothing wrong."""
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Tell whether the finished exchange leaves the connection fit for another."""
        return self.is_complete and self._is_persistent and not self._chunks and self.is_usable

    def send(self, head: bytes, body: bytes) -> None:
        """Begin an exchange; raises `UpstreamError` when the connection is gone.

        The body is in memory already, so the transport may hold what the socket does not take at once.
        """
        if self._transport is None or self._error is not None:
            raise self._error or UpstreamError("reset", "not connected")
        self._reset()
        self._parser = httptools.HttpResponseParser(self)
        if len(body) <= COPIED:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def wait_head(self, due: float, wake_at: float | None = None) -> bool:
        """Wait for the status and the headers.

        `due` is when to give up and `wake_at` when to return False once, both on the loop's clock. Raises
        `UpstreamError`.
        """
        while not self._has_head:
            if not await self._wait(due, "no first content", wake_at):
                return False
        return True

    async def read(self, due: float, fault: Fault = "stalled", wake_at: float | None = None) -> bytes | None:
        """Return the body's next bytes, or `b""` at its end.

        At `due` it raises an `UpstreamError` with `fault`; at `wake_at` it returns None. Raises `UpstreamError`.
        """
        while not self._chunks:
            if self.is_complete:
                return b""
            if not await self._wait(due, fault, wake_at):
                return None
        return self._taken()

    async def read_all(self, limit: int, idle_s: float, due: float = math.inf) -> bytes:
        """Return the whole body, at most `limit` bytes of it; raises `UpstreamError`.

        `idle_s` is for each piece, `due` for the whole, on the loop's clock.
        """
        if self.is_complete and self._chunks and self._buffered <= limit:
            return self._taken()  # all of it has come with its head, or behind it
        parts, size = [], 0
        while data := await self.read(min(self._loop.time() + idle_s, due)):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise UpstreamError("bad answer", f"more than {limit} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _taken(self) -> bytes:
        """Return what has come of the body and was not read yet."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def tell(self) -> None:
        """Take note that the client has all of the answer; what else comes of it is of no use."""
        self.is_told = True
        self._taken()

    @property
    def is_ending(self) -> bool:
        """Tell whether only the end of an answer is missing that its client has all of."""
        return self.is_told and not self.is_complete and self.is_usable

    def end_by(self, due: float, then: Callable[[], None]) -> None:
        """Read an answer that `is_ending` to its end; `then` is called when it has come, or will not come until `due`,
        on the loop's clock.
        """
        self._then = then
        self._due, self._due_fault, self._wake_at = due, "stalled", None
        if self._timer is None or due < self._timer_at:
            self._set_timer(due)

    def rest(self) -> None:
        """Forget the finished exchange before the connection waits for its next one."""
        self._parser = None
        self.is_reused = True

    def close(self) -> None:
        """End the connection at once: an endpoint that still generates learns it from this."""
        self._fail(UpstreamError("reset", "closed"))
        if self._transport is not None:
            self._transport.abort()

    # --- waiting

    async def _wait(self, due: float, fault: Fault, wake_at: float | None) -> bool:
        if self._error is not None:
            raise self._error
        self._due, self._due_fault, self._wake_at = due, fault, wake_at
        at = due if wake_at is None else min(due, wake_at)
        # One timer serves a whole connection: a deadline that moves away is looked at when the old one passes.
        if self._timer is None or at < self._timer_at:
            self._set_timer(at)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, at: float) -> None:
        self._cancel_timer()
        self._timer, self._timer_at = self._loop.call_at(at, self._on_time), at

    def _on_time(self) -> None:
        self._timer = None
        if self._then is None and (self._waiter is None or self._waiter.done()):
            return
        now = self._loop.time()
        if now >= self._due:
            self._fail(UpstreamError(self._due_fault, "deadline"))
        elif self._wake_at is not None and now >= self._wake_at and self._waiter is not None:
            self._waiter.set_result(False)
        else:
            self._set_timer(self._due if self._wake_at is None else min(self._due, self._wake_at))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)
        elif self._then is not None:
            self._taken()
            if self.is_complete:
                self._over()

    def _over(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)
        self._cancel_timer()
        self._over()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self.is_complete:
            # Bytes that no request asked for: nobody can say what they answer.
            self.close()
            return
        self.has_answered = True
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break("switched protocols")
        except httptools.HttpParserError as error:
            self._break(type(error).__name__)
        else:
            if not self._has_head and self._head_size > LARGEST_HEAD:
                self._break(f"headers of more than {LARGEST_HEAD} bytes")
            elif self._has_head:
                self._wake()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_head and self._ends_with_connection and exc is None and self._error is None:
            self.is_complete = True
            self._error = UpstreamError("reset", "ended")
            self._cancel_timer()
            self._wake()
        elif self._has_head:
            self._fail(UpstreamError("ended early", "connection lost"))
        else:
            self._fail(UpstreamError("reset", "connection lost before an answer"))
        self._transport = None

    def _break(self, detail: str) -> None:
        self._fail(UpstreamError("bad answer", detail))
        if self._transport is not None:
            self._transport.abort()

    # --- httptools

    def on_message_begin(self) -> None:
        if self.is_complete:
            # A second answer behind the first; whoever reads the first is not disturbed.
            self._is_persistent = False
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.is_complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:
            return
        self.status = status
        self._has_head = True
        self._is_persistent = self._parser.should_keep_alive()
        has_length = b"content-length" in self.headers or b"chunked" in self.headers.get(b"transfer-encoding", b"")
        self._ends_with_connection = not has_length and status not in _NO_BODY

    def on_body(self, body: bytes) -> None:
        if self.is_complete:
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > PAUSE_ABOVE and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._has_head:
            self.is_complete = True


def tls_context() -> ssl.SSLContext:
    """Return the context for `https:` endpoints: certificates and host names are always verified."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
