"""Pure: how far a request has come down the ladder of its route, and what is said when nobody there can answer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from runtime.gateway.adapters.strict import adapt
from runtime.gateway.attempt import Ask, AttemptError, Result
from runtime.gateway.bodies import Body
from runtime.gateway.errors import ApiError, told_of_load
from runtime.gateway.routing.affinity import prefix_of
from runtime.gateway.routing.outcome import ABSENT, LOADING, MODEL_FAILED, WRONG_DIMENSION
from runtime.gateway.routing.select import Skipped
from runtime.gateway.routing.table import EndpointIdentity, Route, Target

RETRY_AFTER_S = 5.0
"""Retry-After where nobody knows better."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    endpoint: str
    error: AttemptError


class Walk:
    """How far a request has come down the ladder of its route."""

    __slots__ = ("_adapted", "_ask", "attempts", "failures", "has_waited", "prefix", "route", "skipped", "tried")

    def __init__(self, ask: Ask, route: Route) -> None:
        self.route = route
        self.tried: list[EndpointIdentity] = []
        self.failures: list[Failure] = []
        self.skipped: list[Skipped] = []
        self.attempts: dict[int, int] = {}
        """By the number of the rung: each has attempts of its own. A role and a service may have one name."""
        self.has_waited = False
        """Whether an endpoint that is loading was asked as the last one."""
        self.prefix = prefix_of(ask.body.document) if route.has_replicas and route.kind == "chat" else None
        """The beginning of the prompt, where it matters who has read it."""
        self._ask = ask
        self._adapted: dict[str, Body | ApiError] = {}

    @property
    def wait_wish_s(self) -> float:
        """Return how long the client wants to wait for a load."""
        return self._ask.wait_s

    def ask_for(self, target: Target) -> Ask:
        """Return the request as a strict endpoint may have it; it is one that does what is asked."""
        adapted = self._adapted_for(target.identity.engine)
        return replace(self._ask, body=adapted) if isinstance(adapted, Body) else self._ask

    def refusals(self, rung: Route) -> list[tuple[Target, ApiError]]:
        """Return the endpoints that cannot do what is asked, with the reason."""
        strict = (target for target in rung.targets() if target.is_strict)
        found = [(target, self._adapted_for(target.identity.engine)) for target in strict]
        return [(target, error) for target, error in found if isinstance(error, ApiError)]

    def unfit(self, rung: Route) -> Collection[EndpointIdentity]:
        """Return the identities of the endpoints that cannot do what is asked."""
        return [target.identity for target, _ in self.refusals(rung)]

    def _adapted_for(self, engine: str) -> Body | ApiError:
        found = self._adapted.get(engine)
        if found is None:
            try:
                found = adapt(engine, self._ask.path, self._ask.body)
            except ApiError as error:
                found = error
            self._adapted[engine] = found
        return found

    def held_until(self) -> float:
        """Return until when the successor of an endpoint is waited for; minus infinity where none is on its way."""
        missing = (missing for rung in self.route.rungs() for missing in rung.missing)
        return max((each.held_until for each in missing if each.reason == "replacing"), default=-math.inf)

    def wait_s(self) -> float | None:
        """Return how long until an endpoint may be free again; None when nobody says."""
        verdicts = (failure.error.verdict for failure in self.failures)
        waits = [verdict.busy_s for verdict in verdicts if verdict.is_passing or verdict.busy_s]
        waits.extend(skip.retry_s for skip in self.skipped if skip.retry_s is not None)
        return min(waits, default=None)


def exhausted(walk: Walk) -> tuple[Result | ApiError, str]:
    """Say why nobody answered, with the outcome's label.

    Known but down is never 404, except where every endpoint asked says so itself.
    """
    failures = walk.failures
    if failures and all(failure.error.verdict.label == ABSENT for failure in failures):
        last = failures[-1].error
        return Result(last.verdict, last.status, last.body), "unavailable"
    reasons = {failure.endpoint: _reason(failure.error) for failure in failures}
    refusals = [(target, error) for rung in walk.route.rungs() for target, error in walk.refusals(rung)]
    for skip in walk.skipped:
        if skip.reason != "tried":
            reasons.setdefault(skip.name, skip.reason)
    if refusals and not reasons:
        # Everybody who could be asked cannot do this: asking again will not help.
        return refusals[0][1], "client error"
    reasons.update((target.name, f"does not take '{error.param}'") for target, error in refusals)
    named = ", ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no endpoints"
    loads = (failure.error for failure in reversed(failures) if failure.error.verdict.label in {LOADING, MODEL_FAILED})
    told = next(loads, None)
    code, text, loading = told_of_load(b"" if told is None else told.body)
    is_told = told is not None and (loading is not None or told.verdict.label == MODEL_FAILED)
    error = ApiError(
        503,
        f"No endpoint of '{walk.route.name}' can answer now ({named})." + (f" {text}" if is_told and text else ""),
        code=(code if is_told else None) or "no_endpoint_available",
        retry_after_s=RETRY_AFTER_S if (wait_s := walk.wait_s()) is None else wait_s,
        loading=loading,
    )
    return error, "unavailable"


def _reason(error: AttemptError) -> str:
    """Say why an attempt failed: a label, or what a user has to mend in the files."""
    return error.error if error.verdict is WRONG_DIMENSION else error.verdict.label
