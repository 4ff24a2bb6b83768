"""Pure: who has which place at which endpoint: standings by identity. The only mutable state of routing.

Used on the event loop only; every method runs to its end without waiting, so no lock is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from runtime.gateway.routing import breaker
from runtime.gateway.routing.affinity import Affinity, Prefix
from runtime.gateway.routing.budget import Budget
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import (
    COLD,
    LOADING,
    MODEL_FAILED,
    OUTRUN,
    REFUSED,
    SILENT,
    SIMULATED,
    UNHEARD,
    Verdict,
)
from runtime.gateway.routing.select import RATE_S, Choice, choose
from runtime.gateway.routing.standing import Standing
from runtime.gateway.routing.table import EndpointIdentity, Route, RoutingTable, Target

_LARGEST_JITTER = 0.1
_CACHE_LOST = frozenset({"refused", COLD, LOADING})
"""Labels of endpoints that do not run, or whose model was out of memory: what they had read is gone."""


class Pool:
    """Standings by identity, turns by route, and the retry budget."""

    def __init__(self, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds; `draw` gives numbers from 0 to 1 for the jitter of breakers."""
        self._clock = clock
        self._draw = draw
        self._standings: dict[EndpointIdentity, Standing] = {}
        self._absent: frozenset[str] = frozenset()
        """The models of endpoints that the table declares and that cannot be called now."""
        self._turns: Counter[str] = Counter()
        self._budgets: dict[str, Budget] = {}
        """By the name that clients ask for."""
        self.affinity = Affinity()
        self.on_room: Callable[[], None] = lambda: None
        """Called when a request has ended: somebody who waits may have its place."""
        self.on_waking: Callable[[EndpointIdentity], None] = lambda _: None
        """Called when an endpoint's model was found in memory, or not there, against what was known."""
        self.on_renewed: Callable[[Collection[EndpointIdentity]], None] = lambda _: None
        """Called when endpoints may be others than before, at the same addresses."""
        self.on_failure: Callable[[EndpointIdentity], None] = lambda _: None
        """Called when a breaker has counted a failure, or waits for another trial."""

    def now(self) -> float:
        """Return the time on the pool's clock."""
        return self._clock()

    def lease_loading(self, route: Route, target: Target, *, is_retry: bool) -> Lease | None:
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
        standing = self._admit(target, now, target.timeouts.total_s)
        return Lease(self, target, standing, is_retry=is_retry, budget=self._begin(route, is_retry=is_retry))

    def lease_panic(
        self, route: Route, tried: Collection[EndpointIdentity], unfit: Collection[EndpointIdentity] = ()
    ) -> Lease | None:
        """Take a place on an endpoint whose breaker is open, where all are and the files say to try one all the same.

        Who has fewest requests in flight comes first. None where a breaker is closed: then something else is the
        matter, unless its endpoint failed its checks and this request too.
        """
        now = self._clock()
        found: list[tuple[int, Target]] = []
        for target in route.targets():
            standing = self._standings.get(target.identity)
            if standing is None:
                return None
            if isinstance(standing.breaker, breaker.Closed):
                if standing.failed_checks and target.identity in tried:
                    continue
                return None
            is_full = target.max_in_flight is not None and standing.in_flight >= target.max_in_flight
            is_barred = isinstance(standing.breaker, breaker.Isolated) or is_full or standing.busy_until > now
            if target.breaker.panic == "try" and not is_barred and target.identity not in (*tried, *unfit):
                found.append((standing.in_flight, target))
        if not found:
            return None
        _, target = min(found, key=lambda each: each[0])
        standing = self._standings[target.identity]
        standing.in_flight += 1
        budget = self._begin(route, is_retry=bool(tried))
        return Lease(self, target, standing, is_retry=bool(tried), is_panic=True, budget=budget)

    @property
    def standings(self) -> Mapping[EndpointIdentity, Standing]:
        """Everything that is remembered, to be read only."""
        return self._standings

    def adopt(self, table: RoutingTable) -> None:
        """Make room for a new table's endpoints. Known ones keep their state, unlisted ones go when they are idle.

        One that was isolated by hand is remembered while it is only away: it may come back where it was.
        """
        listed = {target.identity: target for target in table.targets()}
        now = self._clock()
        for identity, target in listed.items():
            standing = self._standings.get(identity)
            if standing is None:
                standing = self._standings[identity] = Standing(heard_at=now)
                standing.asleep = COLD if target.is_on_demand else ""
            standing.is_listed = True
        self._absent = frozenset(missing.model for route in table.routes.values() for missing in route.missing)
        for identity in [known for known in self._standings if known not in listed]:
            if self.is_away(identity) and isinstance(self._standings[identity].breaker, breaker.Isolated):
                continue
            self._standings[identity].is_listed = False
            if not self._standings[identity].in_flight:
                del self._standings[identity]
        self.affinity.keep_only(self._standings.__contains__)
        for name in [name for name, budget in self._budgets.items() if name not in table.routes and not budget.active]:
            del self._budgets[name]
        self._turns = Counter({name: turn for name, turn in self._turns.items() if name in table.routes})

    def is_away(self, identity: EndpointIdentity) -> bool:
        """Tell whether an endpoint that is not there now may be one that the table declares all the same."""
        return identity.model in self._absent

    def expect(self, identity: EndpointIdentity) -> Standing | None:
        """Return what is remembered of an endpoint, from now on also of one that is away; None where it is neither."""
        standing = self._standings.get(identity)
        if standing is None and self.is_away(identity):
            standing = self._standings[identity] = Standing(heard_at=self._clock())
        return standing

    def renew(self, identities: Collection[EndpointIdentity]) -> None:
        """Forget the troubles of endpoints that were just seen to answer. Requests that their predecessors still work
        at say nothing about them.
        """
        for identity in identities:
            standing = self._standings.get(identity)
            if standing is None:
                continue
            standing.become(breaker.renewed(standing.breaker), self._clock(), "started anew")
            standing.busy_until = standing.absent_until = 0.0
            standing.failed_checks = 0
            self.affinity.lost(identity)
        self.on_room()
        self.on_renewed(identities)

    def hear(self, identity: EndpointIdentity, *, is_loaded: bool | None, asked_at: float) -> None:
        """Note whether an endpoint's server says that its model is in memory; None where it does not say.

        It was asked at `asked_at`, on the pool's clock: an answer that came after that has shown otherwise.
        """
        standing = self._standings.get(identity)
        if standing is None:
            return
        answered_at = standing.stats.answered_at
        if is_loaded is False and answered_at is not None and answered_at >= asked_at:
            self.on_waking(identity)
            return
        standing.is_unloaded = is_loaded is False
        if is_loaded and standing.asleep == COLD and not standing.in_flight:
            standing.asleep = ""

    def lease(
        self,
        route: Route,
        tried: Collection[EndpointIdentity],
        *,
        unfit: Collection[EndpointIdentity] = (),
        may_risk: bool = True,
        prefix: Prefix | None = None,
        asked: Route | None = None,
    ) -> Lease | Choice:
        """Choose an endpoint and take a place on it, or return the choice that says why there is none.

        `unfit` endpoints cannot do what is asked. With `may_risk` a request that nobody else can answer is the trial of
        an endpoint that is about to be probed. Endpoints that hold the beginning of the prompt, `prefix`, are preferred
        where that pays. `asked` is the route that the client asked for, where this is one of its fallbacks.
        """
        now = self._clock()
        closed = (*tried, *unfit) if unfit else tried
        drawn: Mapping[EndpointIdentity, float] = {}
        if prefix is not None and route.has_replicas:
            drawn = self.affinity.allowances(prefix, (target.identity for target in route.targets()))
        choice = choose(route, self._with_room(route), closed, now, self._turns[route.name], drawn)
        target = choice.target or (choice.trial if may_risk else None)
        if target is None:
            return choice
        if not tried:
            self._turns[route.name] += 1
        standing = self._admit(target, now, target.timeouts.total_s)
        self.affinity.drawn += target.identity in drawn
        return Lease(
            self,
            target,
            standing,
            is_retry=bool(tried),
            budget=self._begin(asked or route, is_retry=bool(tried)),
            prefix=prefix,
            is_drawn=target.identity in drawn,
            passed_over=choice.skipped,
        )

    def lease_probe(self, target: Target, lease_s: float) -> Lease | None:
        """Take a place on an endpoint for a probe of at most `lease_s` seconds; None while none may be made."""
        now = self._clock()
        standing = self._standings.get(target.identity)
        if standing is None or not breaker.would_admit(standing.breaker, now) or standing.busy_until > now:
            return None
        return Lease(self, target, self._admit(target, now, lease_s), is_retry=False, is_probe=True)

    def _admit(self, target: Target, now: float, lease_s: float) -> Standing:
        standing = self._standings[target.identity]
        state = breaker.admit(standing.breaker, now, lease_s)
        if state is not standing.breaker:
            standing.become(state, now, "its time was over")
        standing.in_flight += 1
        if target.rpm is not None:
            begun = standing.begun
            begun.append(now)
            while begun[0] <= now - RATE_S:
                begun.popleft()
        return standing

    def _begin(self, route: Route, *, is_retry: bool) -> Budget:
        budget = self._budgets.get(route.name)
        if budget is None:
            budget = self._budgets[route.name] = Budget()
        budget.begin(is_retry=is_retry)
        return budget

    def may_retry(self, route: Route) -> bool:
        """Tell whether the retry budget of a route has room."""
        budget = self._budgets.get(route.name)
        return budget is None or budget.may_retry()

    def take_back(
        self, lease: Lease, standing: Standing, permit: int, verdict: Verdict, error: str | None, tokens: int
    ) -> None:
        """Record the end of a leased request."""
        now, target = self._clock(), lease.target
        was_away = bool(standing.asleep) or standing.is_unloaded
        if lease.budget is not None:
            lease.budget.end(is_retry=lease.is_retry)
        standing.in_flight -= 1
        standing.waited_out -= lease.is_waited_out
        self.record(lease, standing, permit, verdict)
        if verdict.busy_s:
            standing.busy_until = now + verdict.busy_s
        if verdict.absent_s:
            standing.absent_until = now + (target.check_s or verdict.absent_s)
        _count(lease, standing, verdict, now, tokens)
        if verdict.effect == "success":
            standing.absent_until = 0.0
            standing.heard_at = now
            standing.is_unloaded = False
            if not lease.is_probe:
                standing.pace.answered(now - lease.began_at)
                if lease.prefix is not None:
                    self.affinity.sent(lease.prefix, target.identity)
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
        if was_away != (bool(standing.asleep) or standing.is_unloaded):
            self.on_waking(target.identity)
        if verdict is OUTRUN:
            standing.outrun += 1
        elif verdict.effect == "success":
            standing.outrun = 0
        if verdict is OUTRUN and now - lease.began_at > (standing.pace.service_s or 0.0):
            # It would have taken at least that long; without these the slow answers would be missing.
            standing.pace.answered(now - lease.began_at)
        if verdict.label in _CACHE_LOST:
            self.affinity.lost(target.identity)
        if error is not None and verdict is not SIMULATED and verdict.label not in {COLD, LOADING}:
            standing.last_error = error
            standing.stats.failed_at = now
        if not standing.is_listed and not standing.in_flight and self._standings.get(target.identity) is standing:
            del self._standings[target.identity]
        self.on_room()

    def record(self, lease: Lease, standing: Standing, permit: int, verdict: Verdict) -> None:
        """Tell the breaker what is known of a leased request.

        A check of an endpoint that clients may ask is no request: where it fails, the endpoint is not ready, and its
        breaker counts nothing.
        """
        now, settings = self._clock(), lease.target.breaker
        before, effect = standing.breaker, verdict.effect
        if effect == "success":
            standing.failed_checks = 0
        elif effect == "failure" and lease.is_probe and isinstance(before, breaker.Closed):
            standing.failed_checks += permit == before.generation
            return
        if lease.is_panic:
            after = breaker.answered(before, now, settings=settings) if effect == "success" else before
        else:
            is_slow = effect == "success" and not lease.is_probe and lease.is_slow(now)
            jitter = self._draw() * _LARGEST_JITTER if effect == "failure" or is_slow else 0.0
            after = breaker.record(before, permit, effect, now, settings=settings, jitter=jitter, is_slow=is_slow)
        if effect == "failure":
            standing.failed_at = now
        if after is before:
            return
        standing.become(
            after, now, f"{after.cause}: {verdict.label}" if isinstance(after, breaker.Open) else "an answer"
        )
        if effect != "success" or isinstance(after, breaker.Open):
            self.on_failure(lease.target.identity)

    def _with_room(self, route: Route) -> Mapping[EndpointIdentity, Standing]:
        # A request keeps the table that it started with; that table's endpoints may have been dropped since.
        for tier in route.tiers:
            for target in tier:
                if target.identity not in self._standings:
                    self._standings[target.identity] = Standing(is_listed=False)
        return self._standings


def _count(lease: Lease, standing: Standing, verdict: Verdict, now: float, tokens: int) -> None:
    """Count the end of a request, and note what it says of the endpoint."""
    stats, label = standing.stats, verdict.label
    if label not in UNHEARD:
        stats.heard_at, stats.is_unreachable = now, False
        standing.is_refused = label == REFUSED
    if verdict.effect == "success":
        stats.answered_at, stats.is_silent = now, False
        if not lease.is_probe:
            stats.answer(lease.began_at, lease.first_at, now, tokens)
    elif verdict.effect == "failure":
        stats.failures += not lease.is_probe
        stats.is_silent = label in SILENT
        stats.is_unreachable = label in UNHEARD and not stats.is_silent
