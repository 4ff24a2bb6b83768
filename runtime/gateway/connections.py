"""I/O: connections to endpoints, kept open between requests, with limits and ages."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from runtime.gateway.routing.table import EndpointIdentity
from runtime.gateway.upstream import Connection, UpstreamError, tls_context

MOST_IN_USE = 1024
"""Connections to one origin at once."""
MOST_IDLE = 64
IDLE_S = 4.0
"""How long a connection waits for its next request: less than the 5 s after which uvicorn closes its side."""
END_S = 1.0
"""How long an endpoint may take to end an answer that its client has all of."""
LONGEST_AGE_S = 60.0
"""After this a connection is not used again, so that a name that moved is resolved anew."""


class Origin(NamedTuple):
    """Where connections are interchangeable."""

    scheme: str
    host: str
    port: int


@functools.lru_cache(1024)
def origin_of(identity: EndpointIdentity) -> Origin:
    """Return the origin of an endpoint."""
    return Origin(identity.scheme, identity.host, identity.port)


@dataclass(frozen=True, slots=True)
class _Idle:
    connection: Connection
    since: float


class Connections:
    """Hands out connections and takes them back. Used on one event loop."""

    def __init__(self, context: Callable[[], ssl.SSLContext] = tls_context) -> None:
        """`context` makes the TLS settings when the first `https:` endpoint is called."""
        self._loop = asyncio.get_running_loop()
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[_Idle]] = {}
        self._in_use: Counter[Origin] = Counter()
        self._ending: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def take(self, origin: Origin, connect_s: float, *, is_fresh: bool = False) -> Connection:
        """Return an idle connection, or open one; `is_fresh` asks for a new one. Raises `UpstreamError`.

        Every connection that was taken is given back with `give_back`.
        """
        connection = None if is_fresh else self._take_idle(origin)
        if connection is not None:
            self._in_use[origin] += 1
            return connection
        if self._in_use[origin] >= MOST_IN_USE:
            raise UpstreamError("connection limit", f"{MOST_IN_USE} in use")
        self._in_use[origin] += 1
        try:
            return await self._open(origin, connect_s)
        except BaseException:
            self._leave(origin)
            raise

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end, or comes to it within a second; close any other."""
        now = self._loop.time()
        if connection.is_ending:
            # Nobody waits for that, and whoever leaves meanwhile has had an answer.
            self._ending.add(connection)
            connection.end_by(now + END_S, functools.partial(self._ended, origin, connection))
            return
        self._leave(origin)
        idle = self._idle.setdefault(origin, [])
        if not connection.is_reusable or now - connection.made_at > LONGEST_AGE_S or len(idle) >= MOST_IDLE:
            connection.close()
            return
        connection.rest()
        idle.append(_Idle(connection, now))
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_old)

    def _ended(self, origin: Origin, connection: Connection) -> None:
        self._ending.discard(connection)
        self.give_back(origin, connection)

    def close(self) -> None:
        """Close everything that no request uses."""
        for connection in list(self._ending):
            connection.close()
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            for entry in idle:
                entry.connection.close()
        self._idle.clear()

    def _leave(self, origin: Origin) -> None:
        self._in_use[origin] -= 1
        if not self._in_use[origin]:
            del self._in_use[origin]

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        now = self._loop.time()
        while idle:
            entry = idle.pop()
            if entry.connection.is_usable and now - entry.since < IDLE_S:
                return entry.connection
            entry.connection.close()
        return None

    def _close_old(self) -> None:
        now = self._loop.time()
        for origin, idle in list(self._idle.items()):
            fresh = [entry for entry in idle if now - entry.since < IDLE_S and entry.connection.is_usable]
            for entry in idle:
                if entry not in fresh:
                    entry.connection.close()
            if fresh:
                self._idle[origin] = fresh
            else:
                del self._idle[origin]
        self._sweep = self._loop.call_later(IDLE_S, self._close_old) if self._idle else None

    async def _open(self, origin: Origin, connect_s: float) -> Connection:
        is_tls = origin.scheme == "https"
        try:
            async with asyncio.timeout(connect_s):
                transport, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop),
                    origin.host,
                    origin.port,
                    ssl=self._tls() if is_tls else None,
                    server_hostname=origin.host if is_tls else None,
                )
        except TimeoutError as error:
            raise UpstreamError("connect timeout", f"{connect_s:g} s") from error
        except ssl.SSLError as error:
            raise UpstreamError("TLS error", error.reason or type(error).__name__) from error
        except socket.gaierror as error:
            raise UpstreamError("name not found", error.strerror or "") from error
        except ConnectionRefusedError as error:
            raise UpstreamError("refused") from error
        except ConnectionError as error:
            raise UpstreamError("TLS error" if is_tls else "reset", type(error).__name__) from error
        except OSError as error:
            raise UpstreamError("unreachable", error.strerror or "") from error
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = self._make_context()
        return self._context
