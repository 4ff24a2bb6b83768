"""I/O: puts the parts of a gateway together."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from typing import Any

from sanic import Sanic

from runtime.gateway.app import create_app
from runtime.gateway.attempt import Ask, Course
from runtime.gateway.connections import Connections
from runtime.gateway.exchange import Exchanges
from runtime.gateway.facts.known import FactBook
from runtime.gateway.facts.poller import FactPoller
from runtime.gateway.holds import Holds
from runtime.gateway.isolations import FILE, Isolations
from runtime.gateway.live import Live, gauges
from runtime.gateway.observe.history import History
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.observe.receipts import Receipts, entry_of
from runtime.gateway.prober import Prober
from runtime.gateway.queues import Queues
from runtime.gateway.relay import Relay
from runtime.gateway.reload import Compose, Reloader, Sources
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import RoutingTable
from runtime.gateway.security.guard import Guard
from runtime.gateway.services import Services


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that does not listen yet."""

    app: Sanic[Any, Any]
    services: Services
    connections: Connections
    prober: Prober
    queues: Queues
    fact_poller: FactPoller
    history: History

    def close(self) -> None:
        """End what goes on beside requests, and close idle connections to endpoints."""
        self.prober.close()
        self.services.relay.close()
        self.fact_poller.close()
        self.queues.close()
        self.connections.close()
        self.history.close()


def assemble(sources: Sources, compose: Compose, *, asks_servers: bool = True) -> Gateway:
    """Build a gateway for the running event loop. Its table is empty until the first reload.

    With `asks_servers` the servers behind its endpoints are asked about their models, every minute.
    """
    now = asyncio.get_running_loop().time
    live = Live(stack=sources.stack, pid=os.getpid(), started_at=time.time())
    pool = Pool(now, random.random)
    holds, queues = Holds(), Queues()
    metrics = Metrics(lambda: gauges(live, pool, holds.held, queues.depths, now()))
    connections = Connections()
    exchanges = Exchanges(connections, metrics, now)
    prober = Prober(exchanges, pool, metrics, now, random.random)
    pool.on_room = queues.changed
    receipts, history = Receipts(), History(sources.history)
    facts = FactBook()
    facts.on_note = lambda identity, heard, asked_at: pool.hear(identity, is_loaded=heard.is_loaded, asked_at=asked_at)
    fact_poller = FactPoller(connections, facts, now, random.random)
    pool.on_waking = fact_poller.hasten
    pool.on_renewed = fact_poller.ask_anew

    def note(ask: Ask, course: Course, endpoint: str, outcome: str, ended_at: float) -> None:
        table = live.table
        generation, revision = (0, None) if table is None else (table.generation, table.revision)
        entry = entry_of(
            ask, course, endpoint, outcome, ended_at, wall=time.time(), generation=generation, revision=revision
        )
        receipts.add(entry)
        history.add(entry)

    relay = Relay(exchanges, pool, metrics, holds, queues, live.find_route, now, note, facts.of)

    def take_over(table: RoutingTable) -> None:
        prober.adopt(table)
        if asks_servers:
            fact_poller.adopt(table)
        history.start()
        holds.wake()
        queues.changed()

    guard = Guard(sources.bind, now, time.time)
    isolations = Isolations(sources.routes.with_name(FILE), pool)
    reloader = Reloader(sources, live, pool, metrics, compose, take_over, guard, isolations)
    services = Services(
        live,
        pool,
        metrics,
        relay,
        reloader,
        holds,
        queues,
        prober,
        now,
        guard,
        receipts,
        facts,
        history,
        fact_poller,
        isolations,
    )
    return Gateway(create_app(services), services, connections, prober, queues, fact_poller, history)
