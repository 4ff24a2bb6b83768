"""Pure: the circuit breaker of one endpoint, as frozen states and functions between them.

It opens on failures in a row, on the share of calls that failed, or on the share that was slow. One trial at a time
goes through once its time is over, and only a real answer closes it. Somebody may isolate an endpoint by hand: then
only somebody closes it again.

A result counts only while the breaker is in the generation in which its request was admitted: an answer that arrives
after the breaker opened, closed or gave its trial to somebody else says nothing about now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from schemas.policy import Breaker as Settings

Effect = Literal["success", "failure", "neutral"]
Cause = Literal["failures in a row", "failure rate", "slow calls", "trial failed", "trial undecided"]

SLICE_S = 1.0
"""Calls are counted by the second: a window moves on in such steps."""
DOUBLINGS = 8
"""How often the requests at once that are let through double in the slow start after closing: from 1 to 128."""
_LARGEST_EXPONENT = 30
"""Keeps the doubling within a float for any settings; the cap is reached long before."""


class Slice(NamedTuple):
    """The calls of one second that succeeded or failed; neutral ones are no evidence."""

    number: int
    """The second, counted on the caller's clock."""
    calls: int
    failures: int
    slow: int


class Closed(NamedTuple):
    """Requests pass; how they end is counted."""

    generation: int = 0
    failures: int = 0
    """In a row."""
    window: tuple[Slice, ...] = ()
    """The last seconds in which there were calls, oldest first."""
    streak: int = 0
    """How often it opened in a row before it closed."""
    closed_at: float = -math.inf
    """When an answer closed it."""
    settled_at: float = -math.inf
    """From when on the openings before do not count any more: it has stayed closed for as long as it was open last."""


@dataclass(frozen=True, slots=True)
class Open:
    """No request passes before `until`."""

    generation: int
    until: float
    streak: int
    """How often it opened in a row, from 1, without staying closed in between."""
    cause: Cause = "failures in a row"


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One trial request is on its way; its permit is a lease, so that a trial that hangs cannot hold it for ever."""

    generation: int
    lease_until: float
    streak: int


@dataclass(frozen=True, slots=True)
class Isolated:
    """Somebody has taken the endpoint out by hand; nothing but a hand brings it back."""

    generation: int


State = Closed | Open | HalfOpen | Isolated


def would_admit(state: State, now: float) -> bool:
    """Tell whether a request may pass now."""
    match state:
        case Closed():
            return True
        case Isolated():
            return False
        case Open():
            return now >= state.until
        case HalfOpen():
            return now >= state.lease_until


def wait_s(state: State, now: float) -> float:
    """Return the seconds until a request may pass: 0 when it may now, infinity when nobody knows."""
    match state:
        case Closed():
            return 0.0
        case Isolated():
            return math.inf
        case Open():
            return max(0.0, state.until - now)
        case HalfOpen():
            return max(0.0, state.lease_until - now)


def allowance(state: State, now: float, slow_start_s: float) -> float:
    """Return how many requests at once an endpoint should get where another one can answer; infinity for any number.

    After an answer has closed the breaker that is one, and it doubles until `slow_start_s` seconds are over: an
    endpoint that has just come back, its caches cold, is not given everything at the same moment.
    """
    if not isinstance(state, Closed):
        return math.inf
    age_s = now - state.closed_at
    return math.inf if age_s >= slow_start_s else 2.0 ** int(DOUBLINGS * age_s / slow_start_s)


def admit(state: State, now: float, lease_s: float) -> State:
    """Return the state after a request was let through; its generation is the request's permit.

    Only to be called where `would_admit` holds. `lease_s` bounds how long a trial may keep others waiting, in seconds.
    """
    if isinstance(state, Open | HalfOpen):
        return HalfOpen(state.generation + 1, now + lease_s, state.streak)
    return state


def trial_by_hand(state: State, now: float, lease_s: float) -> State | None:
    """Return the state after somebody asked for a trial before its time; None while another trial is on its way.

    What comes of it changes nothing about an isolated endpoint.
    """
    if isinstance(state, Open):
        return HalfOpen(state.generation + 1, now + lease_s, state.streak)
    return admit(state, now, lease_s) if isinstance(state, Isolated) or would_admit(state, now) else None


def renewed(state: State) -> State:
    """Return the state of an endpoint that was started anew: what its predecessor did, or still does, says nothing.

    One that was isolated by hand stays so.
    """
    return state if isinstance(state, Isolated) else reset(state)


def reset(state: State) -> Closed:
    """Return the state after somebody has closed the breaker by hand: nothing of what was before counts."""
    return Closed(state.generation + 1)


def isolate(state: State) -> Isolated:
    """Return the state after somebody has isolated the endpoint by hand."""
    return state if isinstance(state, Isolated) else Isolated(state.generation + 1)


def answered(state: State, now: float, *, settings: Settings) -> State:
    """Return the state after a real answer to a request that was let through although the breaker was open."""
    return _closed(state, now, settings) if isinstance(state, Open | HalfOpen) else state


def record(
    state: State,
    permit: int,
    effect: Effect,
    now: float,
    *,
    settings: Settings,
    jitter: float,
    is_slow: bool = False,
) -> State:
    """Return the state after the result of a request that was admitted with `permit`.

    `jitter` is the share of the open time that is added, 0 to 1: endpoints that failed together are not tried together.
    `is_slow` says of a success that it took long.
    """
    if permit != state.generation:
        return state
    match state:
        case Open() | Isolated():
            return state
        case HalfOpen():
            return _after_trial(state, effect, now, settings, jitter)
        case Closed():
            return (
                state if effect == "neutral" else _counted(state, effect == "failure", is_slow, now, settings, jitter)
            )


def _after_trial(state: HalfOpen, effect: Effect, now: float, settings: Settings, jitter: float) -> State:
    match effect:
        case "success":
            return _closed(state, now, settings)
        case "failure":
            return _opened(state.generation, state.streak + 1, "trial failed", now, settings, jitter)
        case "neutral":
            # The trial proved nothing (its client left): the next request may be the trial.
            return Open(state.generation + 1, now, state.streak, "trial undecided")


def _counted(
    state: Closed, is_failure: bool, is_slow: bool, now: float, settings: Settings, jitter: float
) -> Closed | Open:
    failures = state.failures + 1 if is_failure else 0
    window = _with_call(state.window, is_failure, is_slow and not is_failure, now, settings.window_s)
    cause = _cause(failures, window, is_failure=is_failure, is_slow=is_slow, settings=settings)
    if cause is not None:
        streak = state.streak + 1 if now < state.settled_at else 1
        return _opened(state.generation, streak, cause, now, settings, jitter)
    return Closed(state.generation, failures, window, state.streak, state.closed_at, state.settled_at)


def _cause(
    failures: int, window: tuple[Slice, ...], *, is_failure: bool, is_slow: bool, settings: Settings
) -> Cause | None:
    """Say why the breaker opens, if it does. A call that was well never opens it: the endpoint has just answered."""
    if failures >= settings.failure_threshold:
        return "failures in a row"
    if not (is_failure or is_slow):
        return None
    calls = sum(each.calls for each in window)
    # A threshold above that number would else never be reached by failures in a row.
    if calls < max(settings.minimum_calls, settings.failure_threshold):
        return None
    if is_failure:
        return "failure rate" if sum(each.failures for each in window) >= settings.failure_rate * calls else None
    return "slow calls" if sum(each.slow for each in window) >= settings.slow_rate * calls else None


def _with_call(
    window: tuple[Slice, ...], is_failure: bool, is_slow: bool, now: float, window_s: float
) -> tuple[Slice, ...]:
    number = int(now // SLICE_S)
    if window and window[-1].number == number:
        last = window[-1]
        return (*window[:-1], Slice(number, last.calls + 1, last.failures + is_failure, last.slow + is_slow))
    oldest = number - window_s / SLICE_S
    return (*(each for each in window if each.number > oldest), Slice(number, 1, int(is_failure), int(is_slow)))


def _opened(generation: int, streak: int, cause: Cause, now: float, settings: Settings, jitter: float) -> Open:
    return Open(generation + 1, now + _open_s(streak, settings) * (1.0 + jitter), streak, cause)


def _closed(state: Open | HalfOpen, now: float, settings: Settings) -> Closed:
    return Closed(
        state.generation + 1, streak=state.streak, closed_at=now, settled_at=now + _open_s(state.streak, settings)
    )


def _open_s(streak: int, settings: Settings) -> float:
    doubled = settings.reset_timeout_s * 2.0 ** min(streak - 1, _LARGEST_EXPONENT)
    return min(doubled, max(settings.max_reset_timeout_s, settings.reset_timeout_s))
