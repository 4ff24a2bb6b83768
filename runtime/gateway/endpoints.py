"""Pure: what is told of each endpoint at `/admin/endpoints`, and which ones a request there means."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from runtime.gateway.routing.breaker import Closed, Isolated, Open, State, wait_s
from runtime.gateway.routing.health import Facts, health_of
from runtime.gateway.routing.outcome import LOADING
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.standing import STATES, Standing
from runtime.gateway.routing.statistics import Statistics
from runtime.gateway.routing.table import EndpointIdentity, RoutingTable, Target
from schemas.admin import (
    BreakerChange,
    BreakerReport,
    EndpointChoice,
    EndpointStatistics,
    Health,
    ProbeReport,
    Spread,
)
from schemas.problems import nearest


class NoSuchEndpointError(Exception):
    """No endpoint is meant, or more than one role's; its text says which there are."""


def instance_of(identity: EndpointIdentity) -> str:
    """Return the host and port of an endpoint."""
    return f"[{identity.host}]:{identity.port}" if ":" in identity.host else f"{identity.host}:{identity.port}"


def health(target: Target, standing: Standing, now: float) -> Health:
    """Tell how an endpoint is; `now` is on the pool's clock."""
    stats = standing.stats
    is_waking = standing.asleep == LOADING and standing.busy_until <= now and not standing.in_flight
    return health_of(
        Facts(
            breaker=standing.breaker,
            in_flight=standing.in_flight,
            answered_age_s=_age(stats.answered_at, now),
            heard_age_s=_age(stats.heard_at, now),
            is_unreachable=stats.is_unreachable,
            is_unready=standing.failed_checks > 0,
            is_silent=stats.is_silent,
            is_refused=standing.is_refused,
            is_asleep=bool(standing.asleep) and not is_waking,
            is_busy=standing.busy_until > now,
            is_full=target.max_in_flight is not None and standing.in_flight >= target.max_in_flight,
            check_s=target.check_s,
        )
    )


def choose_endpoints(table: RoutingTable, choice: EndpointChoice) -> list[Target]:
    """Return the endpoints that are meant: all replicas of a name where none is told apart.

    Raises `NoSuchEndpointError`.
    """
    everyone = list(table.targets())
    named = [target for target in everyone if target.name == choice.endpoint and choice.role in (None, target.role)]
    if not named:
        raise NoSuchEndpointError(_unknown(choice, everyone))
    roles = dict.fromkeys(target.role for target in named)
    places = {role: {target.identity for target in named if target.role == role} for role in roles}
    if len({frozenset(place) for place in places.values()}) > 1:
        several = ", ".join(role or "(no role)" for role in roles)
        raise NoSuchEndpointError(f"Several roles have an endpoint '{choice.endpoint}': {several}. Name the role.")
    found = {target.identity: target for target in named if choice.instance in (None, instance_of(target.identity))}
    if not found:
        there = ", ".join(sorted({instance_of(target.identity) for target in named}))
        raise NoSuchEndpointError(f"The endpoint '{choice.endpoint}' is at {there}, not at '{choice.instance}'.")
    return list(found.values())


def _unknown(choice: EndpointChoice, everyone: Iterable[Target]) -> str:
    names = sorted({target.name for target in everyone if choice.role in (None, target.role)})
    guess = nearest(choice.endpoint, names)
    hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(names) or 'none'}."
    where = f" in the role '{choice.role}'" if choice.role is not None else ""
    return f"No endpoint '{choice.endpoint}' can be called{where}; {hint}"


def statistics(
    table: RoutingTable, pool: Pool, now: float, only: Collection[EndpointIdentity] | None = None
) -> tuple[EndpointStatistics, ...]:
    """Return what is known of each endpoint of a table, or of some of them; `now` is on the pool's clock.

    The table may be one that was replaced meanwhile: of endpoints that have left nothing is known.
    """
    places: dict[EndpointIdentity, list[Target]] = {}
    for target in table.targets():
        if only is None or target.identity in only:
            places.setdefault(target.identity, []).append(target)
    there = ((targets, pool.standings.get(identity)) for identity, targets in places.items())
    return tuple(_one(targets, standing, now) for targets, standing in there if standing is not None)


def _one(targets: list[Target], standing: Standing, now: float) -> EndpointStatistics:
    first, stats = targets[0], standing.stats
    names = dict.fromkeys(f"{target.role}/{target.name}" for target in targets if target.role)
    probe = standing.probe
    rate = stats.tokens_per_s()
    return EndpointStatistics(
        endpoint=first.name,
        role=first.role,
        instance=instance_of(first.identity),
        roles=tuple(names),
        model=first.identity.model,
        health=health(first, standing, now),
        breaker=_breaker(standing.breaker, stats, now),
        in_flight=standing.in_flight,
        answers=stats.answers,
        failures=stats.failures,
        latency_s=_spread(stats.whole_s()),
        first_content_s=_spread(stats.first_content_s()),
        tokens_per_s=None if rate is None else round(rate, 2),
        last_success_age_s=_age(stats.answered_at, now),
        last_error=standing.last_error,
        last_error_age_s=_age(stats.failed_at, now),
        probe=None if probe is None else ProbeReport(age_s=round(now - probe.at, 1), outcome=probe.outcome),
        failed_checks=standing.failed_checks,
    )


def _breaker(state: State, stats: Statistics, now: float) -> BreakerReport:
    left_s = wait_s(state, now)
    return BreakerReport(
        state=STATES[type(state)],
        failures=state.failures if isinstance(state, Closed) else 0,
        streak=0 if isinstance(state, Isolated) else state.streak,
        retry_s=None if isinstance(state, Closed) or math.isinf(left_s) else round(left_s, 1),
        cause=stats.changes[-1].cause if stats.changes else state.cause if isinstance(state, Open) else None,
        history=tuple(
            BreakerChange(age_s=round(now - change.at, 1), state=change.state, cause=change.cause)
            for change in stats.changes
        ),
    )


def _spread(found: tuple[float, float] | None) -> Spread | None:
    return None if found is None else Spread(p50=round(found[0], 4), p95=round(found[1], 4))


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else round(now - at, 1)
