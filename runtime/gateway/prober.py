"""I/O: asks endpoints for a real token, a vector or a score: those whose breaker waits for a trial, and idle ones where
the files say so.

A health page says that a server runs, not that it computes; only an answer of the endpoint's own kind closes a breaker.
What a client's request has shown lately is not asked again.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import math
from collections.abc import Callable, Mapping

from runtime.gateway.adapters import ranking, vectors
from runtime.gateway.adapters.strict import adapt
from runtime.gateway.attempt import Ask, AttemptError, Course
from runtime.gateway.bodies import Body
from runtime.gateway.exchange import Exchanges
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing import by_hand
from runtime.gateway.routing.checks import check_due
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_LEFT
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.standing import Probe
from runtime.gateway.routing.table import EndpointIdentity, Route, RoutingTable, Target

log = logging.getLogger(__name__)

PROBE_S = 30.0
"""How long an endpoint may take to its first token, vectors or scores, where the files do not allow it more."""
MOST_AT_ONCE = 32
JITTER = 0.1
"""Share of an interval by which checks of idle endpoints are spread."""
RESTART_S = 1.0

_PATH = "/v1/chat/completions"


class Prober:
    """Probes the endpoints of one table; another table ends that and begins anew. Used on one event loop."""

    def __init__(
        self,
        exchanges: Exchanges,
        pool: Pool,
        metrics: Metrics,
        now: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        """`now` is the event loop's clock; `draw` gives numbers from 0 to 1."""
        self._exchanges = exchanges
        self._pool = pool
        self._metrics = metrics
        self._now = now
        self._draw = draw
        self._targets: Mapping[EndpointIdentity, Target] = {}
        self._due: list[tuple[float, EndpointIdentity]] = []
        """A heap; an entry counts only while it is the one of `_next`."""
        self._next: dict[EndpointIdentity, float] = {}
        self._running: set[EndpointIdentity] = set()
        self._changed = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        pool.on_failure = self._schedule

    def adopt(self, table: RoutingTable) -> None:
        """Probe the endpoints of this table from now on. The pool knows the table already."""
        targets: dict[EndpointIdentity, Target] = {}
        for target in table.targets():
            known = targets.get(target.identity)
            if known is None or _is_sooner(target, known):
                targets[target.identity] = target
        self.close()
        self._targets, self._due, self._next, self._running = targets, [], {}, set()
        for identity, target in targets.items():
            standing = self._pool.standings[identity]
            standing.is_probed = standing.probe is None or standing.probe.outcome != _UNANSWERABLE
            self._schedule(identity, spread_s=JITTER * (target.check_s or 0.0))
        self._poller = asyncio.create_task(self._run())

    def close(self) -> None:
        """End every probe that is on its way. The poller ends with the loop's next turn."""
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def ask_now(self, target: Target) -> bool:
        """Ask an endpoint of the table in use now, whatever its breaker says; what comes of it is its last probe.

        Return False, without asking, while another trial of it is on its way.
        """
        lease = by_hand.lease_probe(self._pool, target, _limit_s(target))
        if lease is None:
            return False
        await self._ask(lease)
        self._schedule(target.identity)
        return True

    def _schedule(self, identity: EndpointIdentity, *, spread_s: float = 0.0) -> None:
        target, standing = self._targets.get(identity), self._pool.standings.get(identity)
        if target is None or standing is None or not standing.is_probed or identity in self._running:
            return
        due = check_due(standing, target.check_s, self._now())
        if due is not None and due < self._next.get(identity, math.inf):
            self._next[identity] = due = due + self._draw() * spread_s
            heapq.heappush(self._due, (due, identity))
            self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as probes:
                    await self._poll(probes, asyncio.Semaphore(MOST_AT_ONCE))
            except Exception:
                log.exception("probing failed, trying again")
                self._metrics.probe_restart()
                await asyncio.sleep(RESTART_S)
                self._running.clear()
                for identity in self._targets:
                    self._schedule(identity)

    async def _poll(self, probes: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._due[0][0] if self._due else None):
                    await self._changed.wait()
            except TimeoutError:
                pass
            while self._due and self._due[0][0] <= self._now():
                due, identity = heapq.heappop(self._due)
                if self._next.get(identity) == due:
                    del self._next[identity]
                    self._look_at(identity, probes, places)

    def _look_at(self, identity: EndpointIdentity, probes: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
        """Probe an endpoint whose time has come, unless something was heard of it meanwhile."""
        target, standing = self._targets[identity], self._pool.standings.get(identity)
        if standing is None or not standing.is_probed or identity in self._running:
            return
        due = check_due(standing, target.check_s, self._now())
        if due is None or due > self._now():
            self._schedule(identity, spread_s=JITTER * (target.check_s or 0.0))
            return
        self._running.add(identity)
        probes.create_task(self._probe(target, places))

    async def _probe(self, target: Target, places: asyncio.Semaphore) -> None:
        identity = target.identity
        running = self._running
        try:
            async with places:
                lease = self._pool.lease_probe(target, _limit_s(target))
                if lease is not None:
                    await self._ask(lease)
        finally:
            running.discard(identity)
        self._schedule(identity, spread_s=JITTER * (target.check_s or 0.0))

    async def _ask(self, lease: Lease) -> None:
        target = lease.target
        limit_s = _limit_s(target)
        route = Route(target.name, ((target,),), (), 1, limit_s)
        standing = self._pool.standings[target.identity]
        verdict, error = CLIENT_LEFT, None
        try:
            result = await self._exchanges.attempt(_ask(route, target), lease, Course(self._now(), limit_s), _Nobody())
        except AttemptError as failed:
            verdict, error = failed.verdict, failed.error
        except Exception as surprise:
            # Whatever an endpoint does to the code that reads it, others are probed on.
            log.exception("a probe failed: endpoint=%s", target.name)
            error = type(surprise).__name__
        else:
            verdict, error = result.verdict, result.error
        finally:
            lease.finish(verdict, error)
        standing.is_probed = verdict.label not in _NO_PROBES
        if not standing.is_probed:
            # No check will come that could show that it is ready again.
            standing.failed_checks = 0
        outcome = verdict.label if standing.is_probed else _UNANSWERABLE
        standing.probe = Probe(self._now(), outcome, verdict.effect)
        self._metrics.probe(target.name, outcome)


_NO_PROBES = frozenset({"client error", "not supported"})
"""An endpoint that answers the plainest request so cannot be probed: clients' requests are its trials."""
_UNANSWERABLE = "takes no probes"


class _Nobody:
    """A client that wants no answer."""

    is_started = True

    async def start(self, *_: object) -> None:
        return

    async def send(self, *_: object) -> None:
        return


def _limit_s(target: Target) -> float:
    """Return the seconds that a probe may take: whom clients wait for longer must be able to close its breaker."""
    return max(PROBE_S, target.timeouts.first_token_s or 0.0)


def _is_sooner(target: Target, known: Target) -> bool:
    return target.check_s is not None and (known.check_s is None or target.check_s < known.check_s)


def _ask(route: Route, target: Target) -> Ask:
    """Return the smallest request that shows that an endpoint does what its model is for."""
    asked = _ask_plainly(route, target)
    return adapt(asked, target) if target.is_strict else asked


def _ask_plainly(route: Route, target: Target) -> Ask:
    model = target.upstream_model
    match target.kind:
        case "embedding":
            body = vectors.probe_body(model)
            return Ask(route, vectors.PATH, body, "probe", is_probe=True, reading=vectors.reading_of(body, None))
        case "reranking":
            body, reading = ranking.probe_body(model)
            return Ask(route, ranking.PATH, body, "probe", is_probe=True, reading=reading)
        case "chat":
            return _ask_for_a_token(route, model)


def _ask_for_a_token(route: Route, model: str) -> Ask:
    document = {"model": model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1, "stream": True}
    body = Body(json.dumps(document).encode(), document, model, is_stream=True)
    return Ask(route, _PATH, body, "probe", is_probe=True)
