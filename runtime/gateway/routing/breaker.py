"""Pure: the circuit breaker of one endpoint, as frozen states and functions between them.

A result counts only while the breaker is in the generation in which its request was admitted: an answer that arrives
after the breaker opened, closed or gave its trial to somebody else says nothing about now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from schemas.policy import Breaker as Settings

Effect = Literal["success", "failure", "neutral"]

_LARGEST_EXPONENT = 30
"""Keeps the doubling within a float for any settings; the cap is reached long before."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Requests pass; consecutive failures are counted."""

    generation: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """No request passes before `until`."""

    generation: int
    until: float
    streak: int
    """How often it opened in a row without closing in between, from 1."""


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One trial request is on its way; its permit is a lease, so that a trial that hangs cannot hold it for ever."""

    generation: int
    lease_until: float
    streak: int


State = Closed | Open | HalfOpen


def would_admit(state: State, now: float) -> bool:
    """Tell whether a request may pass now."""
    if isinstance(state, Closed):
        return True
    return now >= (state.until if isinstance(state, Open) else state.lease_until)


def wait_s(state: State, now: float) -> float:
    """Return the seconds until a request may pass; 0 when it may now."""
    if isinstance(state, Closed):
        return 0.0
    return max(0.0, (state.until if isinstance(state, Open) else state.lease_until) - now)


def admit(state: State, now: float, lease_s: float) -> State:
    """Return the state after a request was let through; its generation is the request's permit.

    Only to be called where `would_admit` holds. `lease_s` bounds how long a trial may keep others waiting, in seconds.
    """
    if isinstance(state, Closed):
        return state
    return HalfOpen(state.generation + 1, now + lease_s, state.streak)


def renewed(state: State) -> State:
    """Return the state of an endpoint that was started anew: what its predecessor did, or still does, says nothing."""
    return Closed(state.generation + 1)


def record(state: State, permit: int, effect: Effect, now: float, *, settings: Settings, jitter: float) -> State:
    """Return the state after the result of a request that was admitted with `permit`.

    `jitter` is the share of the open time that is added, 0 to 1: endpoints that failed together are not tried together.
    """
    if permit != state.generation or isinstance(state, Open):
        return state
    if isinstance(state, HalfOpen):
        return _after_trial(state, effect, now, settings, jitter)
    if effect == "failure":
        failures = state.failures + 1
        if failures >= settings.failure_threshold:
            return _opened(state.generation, 1, now, settings, jitter)
        return replace(state, failures=failures)
    if effect == "success" and state.failures:
        return replace(state, failures=0)
    return state


def _after_trial(state: HalfOpen, effect: Effect, now: float, settings: Settings, jitter: float) -> State:
    match effect:
        case "success":
            return Closed(state.generation + 1)
        case "failure":
            return _opened(state.generation, state.streak + 1, now, settings, jitter)
        case "neutral":
            # The trial proved nothing (its client left): the next request may be the trial.
            return Open(state.generation + 1, now, state.streak)


def _opened(generation: int, streak: int, now: float, settings: Settings, jitter: float) -> Open:
    doubled = settings.reset_timeout_s * 2.0 ** min(streak - 1, _LARGEST_EXPONENT)
    open_s = min(doubled, max(settings.max_reset_timeout_s, settings.reset_timeout_s))
    return Open(generation + 1, now + open_s * (1.0 + jitter), streak)
