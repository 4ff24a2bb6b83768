"""I/O: asks the servers of a table about their models: at once when they are new, and every minute from then on.

Nothing of it is on a request's path: questions have connections of their own, few at a time and each with a deadline,
and no question makes a server load anything. What was heard is kept in the fact book.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from runtime.gateway.connections import Connections, Origin
from runtime.gateway.facts.answers import Answer, Answers, Question, is_good
from runtime.gateway.facts.inquiry import MOST_ROUNDS, facts_of, is_changing, next_questions, stamp_of
from runtime.gateway.facts.known import UNKNOWN, FactBook
from runtime.gateway.routing.table import EndpointIdentity, RoutingTable
from runtime.gateway.upstream import Connection, UpstreamError
from schemas.prefer import PROBE_HEADER

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
JITTER = 0.2
"""Share of the interval by which it is shortened at random, so that servers are not asked all at once."""
CONNECT_S = 2.0
ANSWER_S = 3.0
"""Such pages come from memory or a directory: milliseconds, also while a server generates."""
SERVER_S = 10.0
"""All questions to one server."""
SOON_S = 0.25
"""After a sign that something has changed; several signs are one."""
LOADING_S = 5.0
"""Between two rounds of questions to a server that loads its model."""
LEAST_S = 1.0
"""Between two rounds of questions to one server, whatever the signs."""
MOST_AT_ONCE = 8
MOST_QUESTIONS = 512
"""To one server in one round."""
BODY_LIMIT = 4 << 20
"""Bytes of one answer; a list of a thousand models is 400 kB."""
PARSED_HERE = 64 << 10
"""Bytes that are parsed on the event loop; larger documents would keep all others waiting."""
RESTART_S = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked: a program that may serve several endpoints."""

    scheme: str
    host: str
    port: int
    base_path: str
    engine: str
    token: str | None = field(repr=False)


class FactPoller:
    """Asks the servers of one table; another table ends that and goes on with its own. Used on one event loop."""

    def __init__(
        self, connections: Connections, book: FactBook, now: Callable[[], float], draw: Callable[[], float]
    ) -> None:
        """`now` is the event loop's clock; `draw` gives numbers from 0 to 1."""
        self._connections = connections
        self._book = book
        self._now = now
        self._draw = draw
        self._servers: dict[Server, dict[EndpointIdentity, str]] = {}
        """The endpoints of each, with the names by which it knows their models."""
        self._due: list[tuple[float, int, Server]] = []
        """A heap; an entry counts only while its time is the one of `_next`. The number keeps servers uncompared."""
        self._next: dict[Server, float] = {}
        self._count = 0
        self._running: set[Server] = set()
        self._again: set[Server] = set()
        """Of the running ones those that are to be asked once more."""
        self._asking: dict[Server, float] = {}
        """When the last round of questions began."""
        self._begun: dict[Server, float] = {}
        """When the last round of questions began that has ended."""
        self._signs: dict[Server, float] = {}
        """When something was last seen to change: what was asked before that may be over."""
        self._kept: dict[Server, dict[Question, tuple[str, Answer]]] = {}
        """Answers that need not be asked for again while their stamp is the same."""
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def adopt(self, table: RoutingTable) -> None:
        """Ask the servers of this table from now on: new ones now, known ones when their time comes."""
        servers: dict[Server, dict[EndpointIdentity, str]] = {}
        for target in table.targets():
            one = target.identity
            server = Server(one.scheme, one.host, one.port, one.base_path, one.engine, target.token)
            servers.setdefault(server, {})[one] = target.upstream_model
        before = self._servers
        due = {server: at for server, at in self._next.items() if servers.get(server) == before.get(server)}
        self.close()
        self._servers, self._due, self._next, self._running = servers, [], {}, set()
        self._again = set()
        self._begun = {server: at for server, at in self._begun.items() if server in servers}
        self._asking = {server: at for server, at in self._asking.items() if server in servers}
        self._signs = {server: at for server, at in self._signs.items() if server in servers}
        self._kept = {server: kept for server, kept in self._kept.items() if server in servers}
        self._book.keep_only({identity for endpoints in servers.values() for identity in endpoints})
        now = self._now()
        for server in servers:
            self._schedule(server, due.get(server, now))
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """End every question that is on its way. The poller ends with the loop's next turn."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def hasten(self, identity: EndpointIdentity) -> None:
        """Ask the server of an endpoint soon: something has changed there."""
        for server, endpoints in self._servers.items():
            if identity in endpoints:
                self._signs[server] = self._now()
                if server in self._running:
                    # What it says on the way may be what was true before.
                    self._again.add(server)
                self._schedule(server, self._soon(server))

    def ask_anew(self, identities: Collection[EndpointIdentity]) -> None:
        """Ask the servers of some endpoints now: what is known of them may be of those that were there before."""
        wanted = frozenset(identities)
        for server, endpoints in self._servers.items():
            if not wanted.isdisjoint(endpoints):
                self._signs[server] = self._now()
                if server in self._running:
                    self._again.add(server)
                self._schedule(server, self._now())

    async def refresh(self, age_s: float, within_s: float) -> None:
        """Ask every server anew of which nothing was heard for `age_s`, or since something changed there; return when
        all have answered or `within_s` have passed, whichever comes first.
        """
        oldest = self._now() - age_s
        since = {server: max(oldest, self._signs.get(server, oldest)) for server in self._servers}
        asked = [server for server, at in since.items() if self._begun.get(server, -math.inf) < at]
        for server in asked:
            if server in self._running and self._asking.get(server, math.inf) < since[server]:
                self._again.add(server)
            self._schedule(server, self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(self._begun.get(one, -math.inf) < since[one] for one in asked if one in self._servers):
                    await self._ended.wait()

    def _soon(self, server: Server) -> float:
        return max(self._now() + SOON_S, self._begun.get(server, -math.inf) + LEAST_S)

    def _schedule(self, server: Server, at: float) -> None:
        if server in self._running or at >= self._next.get(server, math.inf):
            return
        self._next[server] = at
        self._count += 1
        heapq.heappush(self._due, (at, self._count, server))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as rounds:
                    await self._poll(rounds, asyncio.Semaphore(MOST_AT_ONCE))
            except Exception:
                if self._task is not asyncio.current_task():
                    return
                log.exception("asking servers about their models failed, trying again")
                await asyncio.sleep(RESTART_S)
                self._running.clear()
                for server in self._servers:
                    self._schedule(server, self._now() + INTERVAL_S)

    async def _poll(self, rounds: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
        while True:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._due[0][0] if self._due else None):
                    await self._changed.wait()
            while self._due and self._due[0][0] <= self._now():
                due, _, server = heapq.heappop(self._due)
                if self._next.get(server) == due:
                    del self._next[server]
                    self._running.add(server)
                    rounds.create_task(self._ask(server, self._servers[server], self._running, places))

    async def _ask(
        self,
        server: Server,
        endpoints: Mapping[EndpointIdentity, str],
        running: set[Server],
        places: asyncio.Semaphore,
    ) -> None:
        """Ask one server. Another table may come at any moment: its `_running` is another set, and this ends then."""
        began, wait_s = self._now(), INTERVAL_S * (1.0 - JITTER * self._draw())
        try:
            async with places:
                if running is not self._running:
                    return
                began = self._asking[server] = self._now()
                answers = await self._answers(server, frozenset(endpoints.values()))
            if running is not self._running:
                return
            if is_changing(server.engine, answers):
                wait_s = LOADING_S
            for identity, model in endpoints.items():
                before = self._book.known.get(identity, UNKNOWN)
                self._book.note(identity, facts_of(server.engine, answers, model, before, self._now()), began)
        finally:
            running.discard(server)
        self._begun[server] = began
        self._ended.set()
        self._ended = asyncio.Event()
        if server in self._again:
            self._again.discard(server)
            self._schedule(server, self._soon(server))
        self._schedule(server, self._now() + wait_s)

    async def _answers(self, server: Server, models: frozenset[str]) -> Answers:
        """Return what a server says of itself; what it does not answer in time is left out."""
        answers: dict[Question, Answer] = {}
        with contextlib.suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(SERVER_S):
                await self._converse(server, models, answers)
        return answers

    async def _converse(self, server: Server, models: frozenset[str], answers: dict[Question, Answer]) -> None:
        """Ask until there is nothing more to ask, over one connection while that lasts."""
        origin = Origin(server.scheme, server.host, server.port)
        kept = self._kept.setdefault(server, {})
        asked: set[Question] = set()
        connection: Connection | None = None
        try:
            for _ in range(MOST_ROUNDS):
                questions = [one for one in next_questions(server.engine, answers, models) if one not in asked]
                for question in questions[: MOST_QUESTIONS - len(asked)]:
                    asked.add(question)
                    stamp = stamp_of(server.engine, answers, question)
                    known = kept.get(question)
                    if known is not None and stamp is not None and known[0] == stamp:
                        answers[question] = known[1]
                        continue
                    if connection is None or not connection.is_reusable:
                        if connection is not None:
                            self._end(origin, connection)
                            connection = None
                        connection = await self._connections.take(origin, CONNECT_S, is_fresh=True)
                    answer = await self._put(connection, server, question)
                    if answer is None and not answers:
                        # Whoever says nothing at all is not asked the rest.
                        return
                    if answer is not None:
                        answers[question] = answer
                        if stamp is not None and is_good(answer):
                            kept[question] = stamp, answer
                if not questions:
                    return
        finally:
            if connection is not None:
                self._end(origin, connection)

    def _end(self, origin: Origin, connection: Connection) -> None:
        # Closed, not kept: until the next question it would only take a client's request down with it.
        connection.close()
        self._connections.give_back(origin, connection)

    async def _put(self, connection: Connection, server: Server, question: Question) -> Answer | None:
        """Return the answer to one question; None where it broke, which costs the connection."""
        due = self._now() + ANSWER_S
        try:
            connection.send(_head(server, question), question.body.encode())
            await connection.wait_head(due)
            raw = await connection.read_all(BODY_LIMIT, ANSWER_S, due)
        except UpstreamError as error:
            log.debug("no answer about models: %s:%d %s: %s", server.host, server.port, question.path, error)
            connection.close()
            return None
        document = _parsed(raw) if len(raw) <= PARSED_HERE else await asyncio.to_thread(_parsed, raw)
        return Answer(connection.status, document)


def _head(server: Server, question: Question) -> bytes:
    host = f"[{server.host}]" if ":" in server.host else server.host
    lines = (
        f"{'POST' if question.body else 'GET'} {server.base_path}{question.path} HTTP/1.1",
        f"host: {host}:{server.port}",
        "accept: application/json",
        "accept-encoding: identity",
        f"{PROBE_HEADER}: facts",
        *(
            ("content-type: application/json", f"content-length: {len(question.body.encode())}")
            if question.body
            else ()
        ),
        *(() if server.token is None else (f"authorization: Bearer {server.token}",)),
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
