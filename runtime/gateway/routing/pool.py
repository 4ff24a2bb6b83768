"""Pure: what is remembered of endpoints across requests and reloads, by identity. The only mutable state of routing.

Used on the event loop only; every method runs to its end without waiting, so no lock is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.gateway.routing import breaker
from runtime.gateway.routing.outcome import CLIENT_LEFT, COLD, LOADING, MODEL_FAILED, SUCCESS, Verdict
from runtime.gateway.routing.select import Choice, choose
from runtime.gateway.routing.table import EndpointIdentity, Route, RoutingTable, Target

RETRY_SHARE = 0.2
"""Share of the requests in flight that may be second or later attempts."""
LEAST_RETRIES = 3
"""Retries that are allowed however few requests are in flight."""
_LARGEST_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking an endpoint for a token."""

    at: float
    outcome: str
    """`ok`, or the label of what went wrong."""
    effect: breaker.Effect


@dataclass(slots=True)
class Standing:
    """One endpoint's state."""

    in_flight: int = 0
    breaker: breaker.State = field(default_factory=breaker.Closed)
    busy_until: float = 0.0
    asleep: Literal["", "cold", "loading", "model failed"] = ""
    """Where its model was not in memory when it was last heard of."""
    absent_until: float = 0.0
    last_error: str | None = None
    heard_at: float = 0.0
    """When it last answered properly, or was listed first."""
    failed_at: float = 0.0
    """When a request to it last failed."""
    is_probed: bool = False
    """Whether somebody asks it for a token when its breaker waits for a trial."""
    probe: Probe | None = None
    """The last one."""
    is_listed: bool = True
    """False once no table names it; it is dropped when its last request ends."""


class Lease:
    """The right to send one request to one endpoint. It is given back exactly once."""

    __slots__ = ("_is_done", "_permit", "_pool", "_standing", "is_probe", "is_retry", "target")

    def __init__(
        self, pool: Pool, target: Target, standing: Standing, *, is_retry: bool, is_probe: bool = False
    ) -> None:
        self.target = target
        self.is_retry = is_retry
        self.is_probe = is_probe
        self._pool = pool
        self._standing = standing
        self._permit = standing.breaker.generation
        self._is_done = False

    def confirm(self) -> None:
        """Let a trial close its breaker at its first content: a long answer must not keep all others waiting.

        Whatever comes after that counts like any other request. In a closed breaker nothing is recorded before the
        end, so that answers which begin and then break still add up.
        """
        standing = self._standing
        if isinstance(standing.breaker, breaker.HalfOpen) and standing.breaker.generation == self._permit:
            self._pool.record(self, standing, self._permit, SUCCESS)
            self._permit = standing.breaker.generation

    def finish(self, verdict: Verdict, error: str | None = None, tokens: int = 0) -> None:
        """Record how the request ended, and how many tokens came of it. Only the first call counts."""
        if self._is_done:
            return
        self._is_done = True
        self._pool.take_back(self, self._standing, self._permit, verdict, error)

    def release(self) -> None:
        """Give the lease back without a verdict, when the request ended for a reason of its own."""
        self.finish(CLIENT_LEFT)


class Pool:
    """Standings by identity, turns by route, and the retry budget."""

    def __init__(self, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds; `draw` gives numbers from 0 to 1 for the jitter of breakers."""
        self._clock = clock
        self._draw = draw
        self._standings: dict[EndpointIdentity, Standing] = {}
        self._turns: Counter[str] = Counter()
        self._retrying = 0
        self._active = 0
        self.on_failure: Callable[[EndpointIdentity], None] = lambda _: None
        """Called when a breaker has counted a failure, or waits for another trial."""

    def lease_loading(self, target: Target, *, is_retry: bool) -> Lease | None:
        """Take a place on an endpoint that said that it was loading, or could not; None where it has no place, or said
        no such thing.

        Others skip it meanwhile. Whom nobody else can answer hears from itself how it is with the load, or waits there.
        """
        now = self._clock()
        standing = self._standings.get(target.identity)
        if standing is None or not (standing.asleep == LOADING or (standing.asleep == MODEL_FAILED and not is_retry)):
            return None
        if not breaker.would_admit(standing.breaker, now):
            return None
        if target.max_in_flight is not None and standing.in_flight >= target.max_in_flight:
            return None
        self._retrying += is_retry
        self._active += 1
        return Lease(self, target, self._admit(target, now, target.timeouts.total_s), is_retry=is_retry)

    @property
    def standings(self) -> Mapping[EndpointIdentity, Standing]:
        """Everything that is remembered, to be read only."""
        return self._standings

    def adopt(self, table: RoutingTable) -> None:
        """Make room for a new table's endpoints. Known ones keep their state, unlisted ones go when they are idle."""
        listed = {target.identity: target for target in table.targets()}
        now = self._clock()
        for identity, target in listed.items():
            standing = self._standings.get(identity)
            if standing is None:
                standing = self._standings[identity] = Standing(heard_at=now)
                standing.asleep = COLD if target.is_on_demand else ""
            standing.is_listed = True
        for identity in [known for known in self._standings if known not in listed]:
            self._standings[identity].is_listed = False
            if not self._standings[identity].in_flight:
                del self._standings[identity]
        self._turns = Counter({name: turn for name, turn in self._turns.items() if name in table.routes})

    def renew(self, identities: Collection[EndpointIdentity]) -> None:
        """Forget the troubles of endpoints that were just seen to answer."""
        for identity in identities:
            standing = self._standings.get(identity)
            if standing is None:
                continue
            if not isinstance(standing.breaker, breaker.Closed):
                standing.breaker = breaker.renewed(standing.breaker)
            standing.busy_until = standing.absent_until = 0.0

    def lease(
        self,
        route: Route,
        tried: Collection[EndpointIdentity],
        *,
        unfit: Collection[EndpointIdentity] = (),
        may_risk: bool = True,
    ) -> Lease | Choice:
        """Choose an endpoint and take a place on it, or return the choice that says why there is none.

        `unfit` endpoints cannot do what is asked. With `may_risk` a request that nobody else can answer is the trial of
        an endpoint that is about to be probed.
        """
        now = self._clock()
        closed = (*tried, *unfit) if unfit else tried
        choice = choose(route, self._with_room(route), closed, now, self._turns[route.name])
        target = choice.target or (choice.trial if may_risk else None)
        if target is None:
            return choice
        if not tried:
            self._turns[route.name] += 1
        self._retrying += bool(tried)
        self._active += 1
        standing = self._admit(target, now, target.timeouts.total_s)
        return Lease(self, target, standing, is_retry=bool(tried))

    def lease_probe(self, target: Target, lease_s: float) -> Lease | None:
        """Take a place on an endpoint for a probe of at most `lease_s` seconds; None while none may be made."""
        now = self._clock()
        standing = self._standings.get(target.identity)
        if standing is None or not breaker.would_admit(standing.breaker, now) or standing.busy_until > now:
            return None
        return Lease(self, target, self._admit(target, now, lease_s), is_retry=False, is_probe=True)

    def _admit(self, target: Target, now: float, lease_s: float) -> Standing:
        standing = self._standings[target.identity]
        standing.breaker = breaker.admit(standing.breaker, now, lease_s)
        standing.in_flight += 1
        return standing

    def may_retry(self) -> bool:
        """Tell whether the retry budget has room: retries must not multiply the load of a failing cluster."""
        return self._retrying < max(LEAST_RETRIES, RETRY_SHARE * self._active)

    def take_back(self, lease: Lease, standing: Standing, permit: int, verdict: Verdict, error: str | None) -> None:
        """Record the end of a leased request."""
        now, target = self._clock(), lease.target
        self._active -= not lease.is_probe
        self._retrying -= lease.is_retry
        standing.in_flight -= 1
        self.record(lease, standing, permit, verdict)
        if verdict.busy_s:
            standing.busy_until = now + verdict.busy_s
        if verdict.absent_s:
            standing.absent_until = now + verdict.absent_s
        if verdict.effect == "success":
            standing.absent_until = 0.0
            standing.heard_at = now
            if standing.asleep:
                # What it said of its load is over, for those who did not wait for it too.
                standing.asleep, standing.busy_until = "", 0.0
        elif verdict.label == COLD:
            standing.asleep = COLD
        elif verdict.label == LOADING:
            standing.asleep = LOADING
        elif verdict.label == MODEL_FAILED:
            standing.asleep = MODEL_FAILED
        elif verdict.effect == "failure":
            # Whether there is anything to wake is unknown until it says so again.
            standing.asleep = ""
        if error is not None and verdict.label not in {COLD, LOADING}:
            standing.last_error = error
        if not standing.is_listed and not standing.in_flight and self._standings.get(target.identity) is standing:
            del self._standings[target.identity]

    def record(self, lease: Lease, standing: Standing, permit: int, verdict: Verdict) -> None:
        """Tell the breaker what is known of a leased request."""
        before = standing.breaker
        standing.breaker = breaker.record(
            before,
            permit,
            verdict.effect,
            self._clock(),
            settings=lease.target.breaker,
            jitter=self._draw() * _LARGEST_JITTER,
        )
        if verdict.effect == "failure":
            standing.failed_at = self._clock()
        if standing.breaker is not before and verdict.effect != "success":
            self.on_failure(lease.target.identity)

    def _with_room(self, route: Route) -> Mapping[EndpointIdentity, Standing]:
        # A request keeps the table that it started with; that table's endpoints may have been dropped since.
        for tier in route.tiers:
            for target in tier:
                if target.identity not in self._standings:
                    self._standings[target.identity] = Standing(is_listed=False)
        return self._standings
