"""Pure: which endpoint of a route comes next, and why the others do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from runtime.gateway.routing.breaker import Closed, Isolated, Open, State, allowance, wait_s, would_admit
from runtime.gateway.routing.outcome import LOADING, MODEL_FAILED
from runtime.gateway.routing.pace import Pace
from runtime.gateway.routing.table import EndpointIdentity, Route, Target

TRIAL_S = 1.0
"""How long the trial of a half-open breaker usually takes."""

Reason = Literal[
    "not running",
    "draining",
    "replacing",
    "misconfigured",
    "cannot rerank",
    "tried",
    "unready",
    "open",
    "half-open",
    "isolated",
    "busy",
    "loading",
    "model failed",
    "full",
    "rate limit",
]
PASSING: frozenset[Reason] = frozenset({"full", "rate limit", "busy"})
"""Why an endpoint was not taken that is worth waiting for: nothing is wrong with it."""

RATE_S = 60.0
"""The time over which `rpm` counts."""


class Standing(Protocol):
    """What is remembered of an endpoint across requests and reloads, as far as choosing needs it."""

    @property
    def in_flight(self) -> int: ...
    @property
    def breaker(self) -> State: ...
    @property
    def busy_until(self) -> float: ...
    @property
    def asleep(self) -> str: ...
    @property
    def is_unloaded(self) -> bool: ...
    @property
    def absent_until(self) -> float: ...
    @property
    def is_probed(self) -> bool: ...
    @property
    def failed_checks(self) -> int: ...
    @property
    def begun(self) -> Sequence[float]: ...
    @property
    def pace(self) -> Pace: ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """An endpoint that was not taken."""

    name: str
    reason: Reason
    detail: str = ""
    retry_s: float | None = None
    """Seconds after which it may be available; None when nobody knows."""


class Choice(NamedTuple):
    """The endpoint to try, or None with the reasons for all of them."""

    target: Target | None
    skipped: tuple[Skipped, ...]
    trial: Target | None = None
    """An endpoint whose breaker waits for a trial that a probe is about to make, or whose last check failed: a last
    resort."""


def choose(
    route: Route,
    standings: Mapping[EndpointIdentity, Standing],
    tried: Collection[EndpointIdentity],
    now: float,
    turn: int,
    drawn: Mapping[EndpointIdentity, float] | None = None,
) -> Choice:
    """Choose by priority tier; inside a tier by fewest in flight for its weight, ties in weighted turns.

    `turn` counts the requests of the route. `drawn` names the endpoints that hold the beginning of the prompt, with how
    many requests in flight more than others they may have for that. Endpoints that have just come back get ever more
    while others can answer too; those that lately had not got the model, or did not take our key, come after all the
    others. No request is risked as the trial of an endpoint that is probed, or on one whose last check failed: that one
    is only named. One whose model was not in memory is tried by a request, which alone brings it there, so that no
    probe could ever close its breaker. Fallbacks are not looked at.
    """
    skipped: list[Skipped] = []
    warming: list[Target] = []
    absent: list[Target] = []
    cold: list[Target] = []
    trial: Target | None = None
    for tier in route.tiers:
        fit: list[Target] = []
        for target in tier:
            standing = standings[target.identity]
            reason = None if target.identity not in tried else Skipped(target.name, "tried")
            reason = reason or _obstacle(target, standing, now)
            if reason is not None:
                skipped.append(reason)
            elif _is_on_trial(standing):
                trial = trial or target
                if isinstance(standing.breaker, Closed):
                    skipped.append(Skipped(target.name, "unready"))
                else:
                    skipped.append(Skipped(target.name, "open", retry_s=TRIAL_S))
            elif standing.absent_until > now:
                absent.append(target)
            elif route.is_alias and (standing.asleep or standing.is_unloaded):
                cold.append(target)
            elif standing.in_flight and _is_warming(target, standing, now):
                warming.append(target)
            else:
                fit.append(target)
        if fit:
            return Choice(_least_loaded(fit, standings, turn, drawn), tuple(skipped))
    if warming:
        return Choice(_least_loaded(warming, standings, turn, drawn), tuple(skipped))
    if cold or absent:
        return Choice((*cold, *absent)[0], tuple(skipped))
    skipped.extend(Skipped(missing.name, missing.reason, missing.detail) for missing in route.missing)
    return Choice(None, tuple(skipped), trial)


def in_use(
    route: Route, standings: Mapping[EndpointIdentity, Standing], now: float
) -> tuple[Route | None, frozenset[EndpointIdentity]]:
    """Return the rung of a route's ladder that would answer now, and its endpoints that share the requests."""
    for rung in route.rungs():
        target = choose(rung, standings, (), now, 0).target
        if target is not None:
            tier = next(tier for tier in rung.tiers if target in tier)
            return rung, frozenset(one.identity for one in tier if _may_share(one, standings[one.identity], now))
    return None, frozenset()


def _may_share(target: Target, standing: Standing, now: float) -> bool:
    return _obstacle(target, standing, now) is None and not _is_on_trial(standing)


def _is_on_trial(standing: Standing) -> bool:
    """Tell whether a probe, and not a client's request, is to show that an endpoint answers again."""
    if not standing.is_probed or standing.asleep:
        return False
    return standing.failed_checks > 0 or not isinstance(standing.breaker, Closed)


def _is_warming(target: Target, standing: Standing, now: float) -> bool:
    """Tell whether an endpoint that has just come back works at as much as it should get for now."""
    return standing.in_flight >= allowance(standing.breaker, now, target.breaker.slow_start_s)


def _obstacle(target: Target, standing: Standing, now: float) -> Skipped | None:
    if not would_admit(standing.breaker, now):
        left_s = wait_s(standing.breaker, now)
        if isinstance(standing.breaker, Isolated):
            return Skipped(target.name, "isolated")
        if isinstance(standing.breaker, Open):
            return Skipped(target.name, "open", retry_s=left_s)
        # The lease only bounds a trial that hangs; the usual one ends with its first content.
        return Skipped(target.name, "half-open", retry_s=min(left_s, TRIAL_S))
    if standing.busy_until > now:
        return Skipped(target.name, _why_passing(standing), retry_s=standing.busy_until - now)
    if target.max_in_flight is not None and standing.in_flight >= target.max_in_flight:
        # One of them ends, on average, after this part of what an answer takes.
        return Skipped(target.name, "full", retry_s=(standing.pace.service_s or 1.0) / target.max_in_flight)
    if target.rpm is not None and (left_s := _rate_wait_s(standing.begun, target.rpm, now)) > 0:
        return Skipped(target.name, "rate limit", retry_s=left_s)
    return None


def _rate_wait_s(begun: Sequence[float], rpm: int, now: float) -> float:
    """Return how long until fewer than `rpm` requests have begun within the last minute."""
    return 0.0 if len(begun) < rpm else begun[len(begun) - rpm] + RATE_S - now


def _why_passing(standing: Standing) -> Reason:
    if standing.asleep == LOADING:
        return LOADING
    return MODEL_FAILED if standing.asleep == MODEL_FAILED else "busy"


def _least_loaded(
    fit: Sequence[Target],
    standings: Mapping[EndpointIdentity, Standing],
    turn: int,
    drawn: Mapping[EndpointIdentity, float] | None,
) -> Target:
    if len(fit) == 1:
        return fit[0]
    start = _whose_turn(fit, turn)
    rotated = (*fit[start:], *fit[:start])
    loads = [_load(target, standings[target.identity]) for target in rotated]
    lightest = min(loads)
    least = rotated[loads.index(lightest)]
    if not drawn:
        return least
    affordable = [
        (drawn[target.identity], -load, -place, target)
        for place, (target, load) in enumerate(zip(rotated, loads, strict=True))
        if target.identity in drawn and load - lightest <= drawn[target.identity] / target.weight
    ]
    # Of two that hold as much, the one that has less to do, and of two such the one whose turn it is.
    return max(affordable)[3] if affordable else least


def _load(target: Target, standing: Standing) -> float:
    # Recent failures count like requests in flight: an endpoint that fails at once must not look idle.
    failures = standing.breaker.failures if isinstance(standing.breaker, Closed) else 1
    return (standing.in_flight + failures) / target.weight


def _whose_turn(fit: Sequence[Target], turn: int) -> int:
    place = turn % sum([target.weight for target in fit])
    for index, target in enumerate(fit):
        place -= target.weight
        if place < 0:
            return index
    raise AssertionError("weights are positive")
