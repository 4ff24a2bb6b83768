"""Pure: what the gateway serves now, and what is wrong with newer files. Written by `reload` only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from runtime.gateway.endpoints import health
from runtime.gateway.observe.metrics import EndpointGauge, Gauges, PrefixGauge
from runtime.gateway.routing.breaker import Closed, HalfOpen, Isolated
from runtime.gateway.routing.outcome import LOADING
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.select import in_use
from runtime.gateway.routing.standing import STATES, Standing
from runtime.gateway.routing.table import Missing, Route, RoutingTable, Target
from schemas.admin import ConfigReport, EndpointReport, ProbeReport
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

    def find_route(self, name: str) -> Route | None:
        """Look up in the newest table who serves a name that clients ask for."""
        return None if self.table is None else self.table.routes.get(name)

    def role_routes(self) -> Iterator[Route]:
        """Yield the route of every role."""
        if self.table is not None:
            yield from (self.table.routes[role] for role in self.table.roles)


_BREAKER_GAUGE = {"closed": 0, "half-open": 1, "open": 2, "isolated": 3}


def config_report(
    live: Live, pool: Pool, held: Mapping[str, int], queued: Mapping[str, int], now: float
) -> ConfigReport:
    """Describe the configuration for `GET /admin/config`; `now` is on the pool's clock."""
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
        endpoints=tuple(report for route in live.role_routes() for report in _ladder(route, pool, now)),
        held=dict(held),
        queued=dict(queued),
    )


def readiness(live: Live, pool: Pool) -> tuple[bool, dict[str, object]]:
    """Tell whether any role can be served now, with the counts by role, fallbacks included."""
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


def gauges(live: Live, pool: Pool, held: Mapping[str, int], queued: Mapping[str, int], now: float) -> Gauges:
    """Return what is read at every scrape; `now` is on the pool's clock."""
    affinity = pool.affinity
    return Gauges(
        is_current=live.table is not None and not live.problems,
        problems=len(live.problems),
        generation=live.table.generation if live.table else 0,
        endpoints=tuple(_endpoint_gauges(live, pool, now)),
        held=dict(held),
        queued=dict(queued),
        prefixes=PrefixGauge(len(affinity), affinity.drawn, affinity.found, affinity.gone),
    )


def _available(route: Route, pool: Pool) -> int:
    targets = (target for rung in route.rungs() for target in rung.targets())
    return sum(_is_available(pool.standings[target.identity]) for target in targets)


def _is_available(standing: Standing) -> bool:
    return isinstance(standing.breaker, Closed) and not standing.failed_checks


def _declared(route: Route) -> int:
    return sum(sum(1 for _ in rung.targets()) + len(rung.missing) for rung in route.rungs())


def _ladder(route: Route, pool: Pool, now: float) -> Iterator[EndpointReport]:
    """Yield the endpoints of a role, then those of its fallbacks, each with whether it is in use."""
    in_use_rung, in_use_there = in_use(route, pool.standings, now)
    for rung in route.rungs():
        serving = in_use_there if rung is in_use_rung else frozenset()
        is_fallback = rung is not route
        for target in rung.targets():
            is_serving = target.identity in serving
            report = _present(target, pool.standings[target.identity], now, is_serving=is_serving)
            yield report.model_copy(update={"role": route.name, "priority": None}) if is_fallback else report
        for missing in rung.missing:
            absent = _absent(missing)
            yield absent.model_copy(update={"role": route.name, "priority": None}) if is_fallback else absent


def _present(target: Target, standing: Standing, now: float, *, is_serving: bool) -> EndpointReport:
    probe = standing.probe
    return EndpointReport(
        name=target.name,
        role=target.role,
        url=target.identity.url,
        model=target.identity.model,
        state=_state(target, standing, now),
        in_flight=standing.in_flight,
        last_error=standing.last_error,
        priority=target.priority,
        is_serving=is_serving,
        probe=None if probe is None else ProbeReport(age_s=round(now - probe.at, 1), outcome=probe.outcome),
        health=health(target, standing, now),
    )


def _state(
    target: Target, standing: Standing, now: float
) -> Literal["ready", "unready", "cold", "loading", "half-open", "open", "wedged", "isolated", "misconfigured"]:
    if standing.is_refused:
        return "misconfigured"
    if isinstance(standing.breaker, Isolated):
        return "isolated"
    if isinstance(standing.breaker, Closed):
        if standing.failed_checks:
            return "wedged" if standing.stats.is_silent else "unready"
        if standing.asleep == LOADING:
            return "loading" if standing.busy_until > now or standing.in_flight else "ready"
        is_dropped = target.idle_stop_s is not None and now - standing.heard_at > target.idle_stop_s
        is_dropped = is_dropped or (target.is_on_demand and standing.is_unloaded)
        return "cold" if standing.asleep or (is_dropped and not standing.in_flight) else "ready"
    if standing.stats.is_silent:
        return "wedged"
    return "half-open" if isinstance(standing.breaker, HalfOpen) else "open"


def _absent(missing: Missing) -> EndpointReport:
    return EndpointReport(
        name=missing.name,
        role=missing.role,
        url=missing.url,
        model=missing.model,
        state=missing.reason if missing.reason in ("draining", "replacing", "misconfigured") else "not running",
        health="misconfigured" if missing.reason == "misconfigured" else "unknown",
        in_flight=0,
        last_error=missing.detail or None,
        priority=missing.priority,
    )


def _endpoint_gauges(live: Live, pool: Pool, now: float) -> Iterator[EndpointGauge]:
    for route in live.role_routes():
        _, serving = in_use(route, pool.standings, now)
        for target in route.targets():
            standing = pool.standings[target.identity]
            breaker = _BREAKER_GAUGE[STATES[type(standing.breaker)]]
            yield EndpointGauge(
                target.role,
                target.name,
                target.identity.url,
                standing.in_flight,
                breaker,
                is_available=_is_available(standing),
                is_serving=target.identity in serving,
                changed=standing.stats.changed,
            )
        for missing in route.missing:
            yield EndpointGauge(missing.role, missing.name, missing.url, 0, 0, is_available=False)
