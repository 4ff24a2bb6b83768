"""Pure: what the gateway serves now, and what is wrong with newer files. Written by `reload` only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.gateway.observe.metrics import EndpointGauge, Gauges
from runtime.gateway.routing.breaker import Closed, HalfOpen
from runtime.gateway.routing.pool import Pool, Standing
from runtime.gateway.routing.table import Missing, Route, RoutingTable, Target
from schemas.admin import ConfigReport, EndpointReport
from schemas.problems import Problem


@dataclass(slots=True)
class Live:
    """The state of the configuration in this process."""

    stack: str
    pid: int
    started_at: float
    """Seconds since the epoch."""
    table: RoutingTable | None = None
    """The last good one; None until there was one."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the newest files; empty while they are served."""
    loaded_at: float = 0.0
    """When the table was built, seconds since the epoch."""
    reloads: int = 0
    failed_reloads: int = 0
    is_draining: bool = False
    """Whether the process is about to end."""

    def role_routes(self) -> Iterator[Route]:
        """Yield the route of every role."""
        if self.table is not None:
            yield from (self.table.routes[role] for role in self.table.roles)


def config_report(live: Live, pool: Pool) -> ConfigReport:
    """Describe the configuration for `GET /admin/config`."""
    table = live.table
    return ConfigReport(
        stack=live.stack,
        generation=table.generation if table else 0,
        revision=table.revision if table else None,
        routing_digest=table.digest if table else "",
        routing=dict(table.fields) if table else {},
        is_current=table is not None and not live.problems,
        problems=live.problems,
        loaded_at=live.loaded_at,
        reloads=live.reloads,
        failed_reloads=live.failed_reloads,
        pid=live.pid,
        endpoints=tuple(_endpoint_reports(live, pool)),
    )


def readiness(live: Live, pool: Pool) -> tuple[bool, dict[str, object]]:
    """Tell whether any role can be served now, with the counts by role."""
    roles = {
        route.name: {"available": _available(route, pool), "endpoints": _declared(route)}
        for route in live.role_routes()
    }
    is_ready = not live.is_draining and any(role["available"] for role in roles.values())
    return is_ready, {
        "ready": is_ready,
        "draining": live.is_draining,
        "stack": live.stack,
        "generation": live.table.generation if live.table else 0,
        "config_current": live.table is not None and not live.problems,
        "problems": len(live.problems),
        "roles": roles,
    }


def gauges(live: Live, pool: Pool) -> Gauges:
    """Return what is read at every scrape."""
    return Gauges(
        is_current=live.table is not None and not live.problems,
        problems=len(live.problems),
        generation=live.table.generation if live.table else 0,
        endpoints=tuple(_endpoint_gauges(live, pool)),
    )


def _targets(route: Route) -> Iterator[Target]:
    return (target for tier in route.tiers for target in tier)


def _available(route: Route, pool: Pool) -> int:
    return sum(isinstance(pool.standings[target.identity].breaker, Closed) for target in _targets(route))


def _declared(route: Route) -> int:
    return sum(1 for _ in _targets(route)) + len(route.missing)


def _endpoint_reports(live: Live, pool: Pool) -> Iterator[EndpointReport]:
    for route in live.role_routes():
        for target in _targets(route):
            yield _present(target, pool.standings[target.identity])
        yield from (_absent(missing) for missing in route.missing)


def _present(target: Target, standing: Standing) -> EndpointReport:
    state: Literal["ready", "half-open", "open"]
    match standing.breaker:
        case Closed():
            state = "ready"
        case HalfOpen():
            state = "half-open"
        case _:
            state = "open"
    return EndpointReport(
        name=target.name,
        role=target.role,
        url=target.identity.url,
        model=target.identity.model,
        state=state,
        in_flight=standing.in_flight,
        last_error=standing.last_error,
    )


def _absent(missing: Missing) -> EndpointReport:
    return EndpointReport(
        name=missing.name,
        role=missing.role,
        url=missing.url,
        model=missing.model,
        state="draining" if missing.reason == "draining" else "not running",
        in_flight=0,
        last_error=missing.detail or None,
    )


def _endpoint_gauges(live: Live, pool: Pool) -> Iterator[EndpointGauge]:
    for route in live.role_routes():
        for target in _targets(route):
            standing = pool.standings[target.identity]
            is_closed = isinstance(standing.breaker, Closed)
            breaker = 0 if is_closed else 1 if isinstance(standing.breaker, HalfOpen) else 2
            yield EndpointGauge(
                target.role, target.name, target.identity.url, standing.in_flight, breaker, is_available=is_closed
            )
        for missing in route.missing:
            yield EndpointGauge(missing.role, missing.name, missing.url, 0, 0, is_available=False)
