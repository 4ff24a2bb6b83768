"""Pure: how far a request has come down the ladder of its route, and what is said when nobody there can answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from runtime.gateway.adapters.emulation.plan import has_demands
from runtime.gateway.adapters.refusals import refused
from runtime.gateway.adapters.strict import adapt
from runtime.gateway.adapters.whole import asked_as_stream
from runtime.gateway.attempt import Ask, AttemptError, Result, is_emulated
from runtime.gateway.errors import ApiError, told_of_load
from runtime.gateway.facts.known import UNKNOWN, Facts
from runtime.gateway.facts.lengths import route_for
from runtime.gateway.routing.affinity import Prefix, prefix_of
from runtime.gateway.routing.outcome import (
    ABSENT,
    BUSY,
    CONTEXT_OVERFLOW,
    LOADING,
    MODEL_FAILED,
    UNFIT,
    WRONG_DIMENSION,
)
from runtime.gateway.routing.select import Skipped
from runtime.gateway.routing.table import EndpointIdentity, Route, Target

RETRY_AFTER_S = 5.0
"""Retry-After where nobody knows better."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    target: Target
    error: AttemptError

    @property
    def endpoint(self) -> str:
        """Return the endpoint's name."""
        return self.target.name


class Walk:
    """How far a request has come down the ladder of its route."""

    __slots__ = (
        "_adapted",
        "_ask",
        "_facts_of",
        "_prefix",
        "attempts",
        "failures",
        "has_demands",
        "has_waited",
        "instead",
        "line_s",
        "origin",
        "queue_until",
        "route",
        "skipped",
        "too_short",
        "tried",
    )

    def __init__(self, ask: Ask, route: Route, facts_of: Callable[[Target], Facts] = lambda _: UNKNOWN) -> None:
        """`facts_of` returns what is known of an endpoint's model."""
        self.route = route
        self.instead = ""
        """The role that is asked in its place, because its endpoints cannot read so long a prompt."""
        self.too_short: Collection[EndpointIdentity] = ()
        """The endpoints that cannot, and those that were asked before them."""
        self.origin = route
        """What the table said of the name; `route` may be another one that took its place."""
        self.queue_until: float | None = None
        """Until when the request waits in line; None before it had to."""
        self.line_s = 0.0
        """How long those in line will take, for one that has waited in vain."""
        self.tried: list[EndpointIdentity] = []
        self.failures: list[Failure] = []
        self.skipped: list[Skipped] = []
        self.attempts: dict[int, int] = {}
        """By the number of the rung: each has attempts of its own. A role and a service may have one name."""
        self.has_waited = False
        """Whether an endpoint that is loading was asked as the last one."""
        self._prefix: Prefix | None = None
        self.has_demands = ask.steps is None and has_demands(ask.body)
        """Whether it asks for anything that some engines cannot do."""
        self._ask = ask
        self._facts_of = facts_of
        self._adapted: dict[tuple[object, ...], Ask | ApiError] = {}
        self._pass_over_short()

    def prefix_for(self, rung: Route) -> Prefix | None:
        """Return the beginning of the prompt, where it matters who of a rung has read it."""
        if not rung.has_replicas or rung.kind != "chat":
            return None
        if self._prefix is None:
            self._prefix = prefix_of(self._ask.body.document)
        return self._prefix

    def failed(self, failure: Failure) -> None:
        """Take note of an attempt that failed."""
        self.tried.append(failure.target.identity)
        self.failures.append(failure)

    def forgive(self) -> None:
        """Let endpoints be asked once more that were only busy: the request is about to wait for them."""
        busy = [failure.target.identity for failure in self.failures if failure.error.verdict.label == BUSY]
        if busy:
            self.tried = [identity for identity in self.tried if identity not in busy]

    def move(self, route: Route) -> None:
        """Go on in a newer table."""
        self.route = self.origin = route
        self.instead, self.too_short = "", ()
        self.attempts.clear()
        self._pass_over_short()

    def go_on(self, ask: Ask) -> None:
        """Ask for something else from now on: for the rest of an answer, or for all of it again."""
        if ask is not self._ask:
            self._ask = ask
            self._adapted.clear()
            self.has_demands = ask.steps is None and has_demands(ask.body)

    def _pass_over_short(self) -> None:
        """Begin where the prompt can be read, if it is certain that nobody can whom the name stands for."""
        if self.route.context is not None:
            longer = route_for(self._ask, self.route, self._facts_of)
            if longer is not self.route:
                self.route, self.instead = longer, longer.name

    @property
    def wait_wish_s(self) -> float:
        """Return how long the client wants to wait for a load."""
        return self._ask.wait_s

    @property
    def wanted_length(self) -> int | None:
        """Return the length of vectors that the client, and not the role, asks for."""
        asked = self._ask.body.document.get("dimensions")
        return asked if isinstance(asked, int) and self.origin.dimensions is None else None

    def ask_for(self, target: Target) -> Ask:
        """Return the request as an endpoint may have it; it is one that does what is asked."""
        ask = self._ask
        if target.is_strict or self.has_demands:
            adapted = self._adapted_for(target)
            ask = adapted if isinstance(adapted, Ask) else ask
        if ask.body.is_stream or ask.reading is not None:
            return ask
        return asked_as_stream(ask, target, self._facts_of(target).source)

    def refusals(self, rung: Route) -> list[tuple[Target, ApiError]]:
        """Return the endpoints that cannot do what is asked, with the reason."""
        looked_at = (target for target in rung.targets() if target.is_strict or self.has_demands)
        found = [(target, self._adapted_for(target)) for target in looked_at]
        return [(target, error) for target, error in found if isinstance(error, ApiError)]

    def unfit(self, rung: Route) -> Collection[EndpointIdentity]:
        """Return the identities of the endpoints that cannot do what is asked."""
        if not (rung.is_strict or self.has_demands):
            return self.too_short
        return [*self.too_short, *(target.identity for target, _ in self.refusals(rung))]

    def _adapted_for(self, target: Target) -> Ask | ApiError:
        facts = self._facts_of(target)
        asked_as = (target.identity.engine, target.upstream_model, target.max_batch, target.drop_params)
        key = (*asked_as, facts.source, facts.is_able("vision"), facts.is_able("tools"))
        found = self._adapted.get(key)
        if found is None:
            try:
                found = adapt(self._ask, target, facts)
                if self._ask.is_rest and is_emulated(found):
                    # What is put together by the gateway is a whole answer.
                    found = refused(target.name, "messages", "cannot be gone on with")
            except ApiError as error:
                found = error
            self._adapted[key] = found
        return found

    def go_longer(self, target: Target, ended: Result) -> bool:
        """Go on where longer prompts can be read, if an endpoint has said that this one is too long; else return False.

        The role that the endpoint was asked for says who reads more, else the one that is asked now. That is no second
        attempt: nothing is wrong with the endpoint.
        """
        if ended.verdict is not CONTEXT_OVERFLOW:
            return False
        rung = next((rung for rung in self.route.rungs() if target in rung.targets()), self.route)
        context = rung.context or self.route.context
        if context is None:
            return False
        error = f"{ended.verdict.label} (status {ended.status})"
        self.failures.append(Failure(target, AttemptError(ended.verdict, error, ended.status, ended.body or b"")))
        self.too_short = [*self.too_short, *self.tried, target.identity]
        self.tried = []
        self.attempts.clear()
        self.route, self.instead = context, context.name
        return True

    def held_until(self) -> float:
        """Return until when the successor of an endpoint is waited for; minus infinity where none is on its way."""
        missing = (missing for rung in self.route.rungs() for missing in rung.missing)
        return max((each.held_until for each in missing if each.reason == "replacing"), default=-math.inf)

    def wait_s(self) -> float | None:
        """Return how long until an endpoint may be free again; None when nobody says."""
        verdicts = (failure.error.verdict for failure in self.failures)
        waits = [verdict.busy_s for verdict in verdicts if verdict.is_passing or verdict.busy_s]
        waits.extend(skip.retry_s for skip in self.skipped if skip.retry_s is not None)
        return max(min(waits), self.line_s) if waits else None


def exhausted(walk: Walk) -> tuple[Result | ApiError, str]:
    """Say why nobody answered, with the outcome's label.

    Known but down is never 404, except where every endpoint asked says so itself of what is no alias.
    """
    failures = walk.failures
    if failures and not walk.origin.is_alias and all(failure.error.verdict.label == ABSENT for failure in failures):
        last = failures[-1].error
        return Result(last.verdict, last.status, last.body), "unavailable"
    are_skipped = any(skip.reason != "tried" for skip in walk.skipped)
    if failures and not are_skipped and all(failure.error.verdict is UNFIT for failure in failures):
        # Everybody has answered: asking again is the client's choice.
        unfit = failures[-1].error
        return Result(unfit.verdict, unfit.status, unfit.body), UNFIT.label
    if failures and walk.wanted_length and all(failure.error.verdict is WRONG_DIMENSION for failure in failures):
        found = failures[-1].error.error
        message = f"'dimensions' cannot be {walk.wanted_length}: the models of '{walk.origin.name}' give {found}."
        return ApiError(400, message, code="unsupported_parameter", param="dimensions"), "client error"
    reasons = {failure.endpoint: _reason(failure.error) for failure in failures}
    refusals = [(target, error) for rung in walk.route.rungs() for target, error in walk.refusals(rung)]
    for skip in walk.skipped:
        if skip.reason != "tried":
            reasons.setdefault(skip.name, skip.reason)
    if refusals and not reasons:
        # Everybody who could be asked cannot do this: asking again will not help.
        return refusals[0][1], "client error"
    failed = {failure.endpoint for failure in failures}  # one that broke off may not be able to go on either
    unable = [(target.name, error) for target, error in refusals if target.name not in failed]
    reasons.update((name, f"does not take '{error.param}'") for name, error in unable)
    named = ", ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no endpoints"
    loads = (failure.error for failure in reversed(failures) if failure.error.verdict.label in {LOADING, MODEL_FAILED})
    told = next(loads, None)
    code, text, loading = told_of_load(b"" if told is None else told.body)
    is_told = told is not None and (loading is not None or told.verdict.label == MODEL_FAILED)
    error = ApiError(
        503,
        f"No endpoint of '{walk.origin.name}' can answer now ({named})." + (f" {text}" if is_told and text else ""),
        code=(code if is_told else None) or "no_endpoint_available",
        retry_after_s=RETRY_AFTER_S if (wait_s := walk.wait_s()) is None else wait_s,
        loading=loading,
    )
    return error, "unavailable"


def _reason(error: AttemptError) -> str:
    """Say why an attempt failed: a label, or what a user has to mend in the files."""
    return error.error if error.verdict is WRONG_DIMENSION else error.verdict.label
