"""The breaker: each rule by itself, then all of them against a reference model with a plain list of what happened."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.gateway.routing.breaker import (
    Closed,
    HalfOpen,
    Isolated,
    Open,
    State,
    admit,
    allowance,
    answered,
    isolate,
    record,
    renewed,
    reset,
    trial_by_hand,
    wait_s,
    would_admit,
)
from schemas.policy import Breaker

LEASE_S = 20.0
SETTINGS = Breaker(failure_threshold=3, reset_timeout_s=10.0, max_reset_timeout_s=35.0)
SHARES = Breaker(failure_threshold=5, minimum_calls=5, reset_timeout_s=10.0)


def end(
    state: State, effect: str, now: float = 0.0, *, by: Breaker = SETTINGS, is_slow: bool = False, jitter: float = 0.0
) -> State:
    return record(state, state.generation, effect, now, settings=by, jitter=jitter, is_slow=is_slow)


def fail(state: State, now: float, times: int = 1) -> State:
    for _ in range(times):
        state = end(state, "failure", now)
    return state


def calls(text: str, now: float = 0.0, *, by: Breaker = SHARES, state: State | None = None) -> State:
    """End a call for each letter: `f` failed, `s` succeeded, `l` succeeded slowly, `n` was neutral."""
    state = state or Closed()
    for letter in text:
        effect = {"f": "failure", "n": "neutral"}.get(letter, "success")
        state = end(state, effect, now, by=by, is_slow=letter == "l")
    return state


def opened(streak: int = 1, until: float = 10.0, generation: int = 1) -> Open:
    return Open(generation, until, streak)


# Opening.


def test_successes_that_nobody_calls_slow_are_not() -> None:
    state: State = Closed()
    for _ in range(20):
        state = record(state, state.generation, "success", 0.0, settings=SHARES, jitter=0.0)
    assert isinstance(state, Closed)
    assert sum(part.slow for part in state.window) == 0


def test_opens_after_exactly_the_threshold() -> None:
    state = fail(Closed(), 0.0, times=2)
    assert isinstance(state, Closed)
    state = fail(state, 0.0)
    assert isinstance(state, Open)
    assert (wait_s(state, 0.0), state.streak, state.cause) == (10.0, 1, "failures in a row")


def test_a_success_between_failures_starts_the_count_again() -> None:
    by_row = Breaker(failure_threshold=3, minimum_calls=100)
    assert isinstance(calls("ffsff", by=by_row), Closed)
    assert isinstance(calls("ffsfff", by=by_row), Open)


def test_neutral_results_neither_count_nor_reset() -> None:
    state = fail(Closed(), 0.0, times=2)
    assert end(state, "neutral") is state
    assert isinstance(fail(state, 0.0), Open)


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ("sssff", None),  # two of five
        ("ssfsff", "failure rate"),  # three of six
        ("fsfs", None),  # two of four: too few calls
        ("fsfsf", "failure rate"),
        ("fsnnnf", None),  # neutral calls are no calls
        ("ffsfs", None),  # three of five, but the last one was well
        ("ffsfsf", "failure rate"),
        ("lllls", None),  # four of five are slow, but the last one was not
        ("llll", None),
        ("lllsl", "slow calls"),
        ("llssl", None),
        ("llllf", None),  # a failure does not open it for slow calls
        ("fffff", "failures in a row"),
    ],
)
def test_shares_of_enough_calls_open_it(ends: str, cause: str | None) -> None:
    state = calls(ends)
    assert (state.cause if isinstance(state, Open) else None) == cause


def test_the_shares_and_the_number_of_calls_are_the_files() -> None:
    strict = Breaker(failure_threshold=2, minimum_calls=2, failure_rate=0.25, slow_rate=0.5)
    assert isinstance(calls("sssf", by=strict), Open)
    assert isinstance(calls("ssssf", by=strict), Closed)
    assert isinstance(calls("sl", by=strict), Open)
    assert isinstance(calls("f", by=strict), Closed), "one call"


def test_a_threshold_above_the_number_of_calls_is_reached_by_failures_in_a_row() -> None:
    patient = Breaker(failure_threshold=8, minimum_calls=5)
    assert isinstance(calls("fffffff", by=patient), Closed)
    state = calls("ffffffff", by=patient)
    assert isinstance(state, Open)
    assert state.cause == "failures in a row"


def test_calls_leave_the_window() -> None:
    first = calls("ff", 0.5)
    assert isinstance(calls("ssf", 29.9, state=first), Open), "three of five in thirty seconds"
    assert isinstance(calls("ssf", 30.0, state=first), Closed), "one of three"
    state = first
    for second in range(1, 300):
        state = calls("s", float(second), state=state)
        assert isinstance(state, Closed)
        assert len(state.window) <= 30, "what is remembered is bounded"


def test_calls_of_one_second_are_counted_together() -> None:
    state = calls("sfsls", 7.25)
    assert isinstance(state, Closed)
    assert state.window == ((7, 5, 1, 1),)
    assert isinstance(calls("s", 8.0, state=state), Closed)
    assert [each.number for each in calls("s", 8.0, state=state).window] == [7, 8]  # type: ignore[union-attr]


# Open.


def test_open_time_doubles_to_its_cap() -> None:
    state, now, waits = fail(Closed(), 0.0, times=3), 0.0, []
    for _ in range(4):
        waits.append(wait_s(state, now))
        now += waits[-1]
        state = fail(admit(state, now, LEASE_S), now)
    assert waits == [10.0, 20.0, 35.0, 35.0]
    assert isinstance(state, Open)
    assert (state.cause, state.streak) == ("trial failed", 5)


def test_a_cap_below_the_first_time_does_not_shorten_it() -> None:
    low = Breaker(failure_threshold=1, reset_timeout_s=50.0, max_reset_timeout_s=5.0)
    assert wait_s(end(Closed(), "failure", by=low), 0.0) == 50.0


def test_a_streak_without_end_stays_at_the_cap() -> None:
    state = end(HalfOpen(1, 0.0, 5000), "failure", by=Breaker(reset_timeout_s=1e-9, max_reset_timeout_s=86_400.0))
    assert 0 < wait_s(state, 0.0) <= 86_400.0


def test_jitter_only_adds() -> None:
    state = end(fail(Closed(), 0.0, times=2), "failure", jitter=0.1)
    assert wait_s(state, 0.0) == 11.0


def test_nothing_that_ends_while_it_is_open_changes_it() -> None:
    state = opened()
    for effect in ("success", "failure", "neutral"):
        assert end(state, effect) is state


def test_what_is_due_is_waited_for_no_longer() -> None:
    assert wait_s(Closed(), 5.0) == 0.0
    assert wait_s(opened(until=10.0), 9.5) == 0.5
    assert wait_s(opened(until=10.0), 50.0) == 0.0
    assert wait_s(HalfOpen(1, 10.0, 1), 9.5) == 0.5
    assert wait_s(HalfOpen(1, 10.0, 1), 50.0) == 0.0


# Half-open.


def test_half_open_lets_exactly_one_through() -> None:
    state = fail(Closed(), 0.0, times=3)
    assert not would_admit(state, 9.9)
    assert would_admit(state, 10.0)
    state = admit(state, 10.0, LEASE_S)
    assert not any(would_admit(state, 10.0 + tenth / 10) for tenth in range(199))
    assert wait_s(state, 12.0) == 18.0
    assert wait_s(state, 99.0) == 0.0


def test_a_trial_that_hangs_gives_way_when_its_lease_ends() -> None:
    hung = admit(fail(Closed(), 0.0, times=3), 10.0, LEASE_S)
    assert would_admit(hung, 30.0)
    second = admit(hung, 30.0, LEASE_S)
    late = record(second, hung.generation, "success", 31.0, settings=SETTINGS, jitter=0.0)
    assert late is second, "the late result of the first trial says nothing about the second"
    closed = end(second, "success", 31.0)
    assert isinstance(closed, Closed)


def test_a_cancelled_trial_leaves_room_for_the_next_at_once() -> None:
    trial = admit(fail(Closed(), 0.0, times=3), 10.0, LEASE_S)
    state = end(trial, "neutral", 11.0)
    assert state == Open(trial.generation + 1, 11.0, 1, "trial undecided")
    assert would_admit(state, 11.0)
    assert wait_s(fail(admit(state, 11.0, LEASE_S), 11.0), 11.0) == 20.0, "the streak is kept"


@pytest.mark.parametrize("effect", ["success", "failure", "neutral"])
def test_a_result_of_an_earlier_generation_is_ignored(effect: str) -> None:
    for state in (Closed(5, failures=2), opened(generation=5), HalfOpen(5, 20.0, 1), Isolated(5)):
        for permit in (4, 6, -1):
            assert record(state, permit, effect, 0.0, settings=SETTINGS, jitter=0.0) is state


def test_every_change_has_a_generation_of_its_own() -> None:
    state = fail(Closed(), 0.0, times=3)
    assert state.generation == 1
    state = admit(state, 10.0, LEASE_S)
    assert state.generation == 2
    assert end(state, "success").generation == 3
    assert end(state, "failure").generation == 3
    assert end(state, "neutral").generation == 3
    assert isolate(state).generation == 3
    assert reset(state).generation == 3
    assert renewed(state).generation == 3
    assert trial_by_hand(opened(generation=3), 0.0, 1.0).generation == 4  # type: ignore[union-attr]
    assert admit(Closed(7), 0.0, 1.0) == Closed(7), "a request that passes a closed one changes nothing"


# Closed again.


def test_after_closing_requests_at_once_double_until_the_slow_start_is_over() -> None:
    closed = end(HalfOpen(1, 99.0, 1), "success", 100.0)
    assert isinstance(closed, Closed)
    assert closed.closed_at == 100.0
    times = [0.0, 1.9, 2.0, 4.0, 8.0, 14.0, 15.9, 16.0, 500.0]
    found = [allowance(closed, 100.0 + age, 16.0) for age in times]
    assert found == [1, 1, 2, 4, 16, 128, 128, math.inf, math.inf]
    assert allowance(closed, 100.0, 0.0) == math.inf, "none is wanted"


def test_only_an_answer_makes_a_slow_start() -> None:
    for state in (Closed(), reset(opened()), renewed(opened()), opened(), HalfOpen(1, 9.0, 1), Isolated(1)):
        assert allowance(state, 0.0, 30.0) == math.inf


def test_the_slow_start_goes_on_while_calls_are_counted() -> None:
    closed = end(HalfOpen(1, 99.0, 1), "success", 100.0)
    assert allowance(end(end(closed, "success", 101.0), "failure", 102.0), 103.0, 30.0) == 1


def test_who_fails_again_soon_after_closing_goes_on_with_its_streak() -> None:
    state: State = Closed()
    now, waits = 1000.0, []
    for _ in range(4):
        state = fail(state, now, times=3)
        waits.append(wait_s(state, now))
        now += waits[-1]
        state = end(admit(state, now, LEASE_S), "success", now)
        now += 1.0
    assert waits == [10.0, 20.0, 35.0, 35.0]


def test_who_stays_closed_for_as_long_as_it_was_open_starts_anew() -> None:
    closed = end(HalfOpen(4, 99.0, 2), "success", 100.0)
    assert isinstance(closed, Closed)
    assert (closed.streak, closed.settled_at) == (2, 120.0)
    assert fail(closed, 119.9, times=3).streak == 3  # type: ignore[union-attr]
    assert fail(closed, 120.0, times=3).streak == 1  # type: ignore[union-attr]


# By hand.


def test_only_a_hand_brings_an_isolated_endpoint_back() -> None:
    for state in (Closed(3), opened(generation=3), HalfOpen(3, 9.0, 1)):
        isolated = isolate(state)
        assert isolated == Isolated(4)
        assert not would_admit(isolated, 1e9)
        assert wait_s(isolated, 1e9) == math.inf
        assert isolate(isolated) is isolated
        assert renewed(isolated) is isolated, "a new process is no hand"
        assert answered(isolated, 0.0, settings=SETTINGS) is isolated
        for effect in ("success", "failure", "neutral"):
            assert end(isolated, effect) is isolated
        assert reset(isolated) == Closed(5)


def test_a_trial_by_hand_does_not_wait_for_its_time() -> None:
    assert trial_by_hand(opened(streak=3, until=500.0), 2.0, LEASE_S) == HalfOpen(2, 22.0, 3)
    assert trial_by_hand(Closed(3), 2.0, LEASE_S) == Closed(3)
    assert trial_by_hand(Isolated(3), 2.0, LEASE_S) == Isolated(3)
    assert trial_by_hand(HalfOpen(3, 9.0, 2), 2.0, LEASE_S) is None, "there is one on its way"
    assert trial_by_hand(HalfOpen(3, 9.0, 2), 9.0, LEASE_S) == HalfOpen(4, 29.0, 2)


def test_an_answer_in_a_panic_closes_it() -> None:
    for state in (opened(streak=2, generation=3), HalfOpen(3, 9.0, 2)):
        closed = answered(state, 50.0, settings=SETTINGS)
        assert closed == Closed(4, streak=2, closed_at=50.0, settled_at=70.0)
    assert answered(Closed(3, failures=1), 50.0, settings=SETTINGS) == Closed(3, failures=1)


# Everything together.


class BreakerAgainstModel(RuleBasedStateMachine):
    """Requests start and end in any order, people isolate and close, while time passes.

    The model keeps every call with its time and counts again whenever it is asked; eras stand for generations.
    """

    @initialize(
        threshold=st.integers(1, 6),
        minimum=st.integers(1, 6),
        reset_s=st.integers(1, 20),
        rate=st.sampled_from([0.25, 0.5, 1.0]),
        slow=st.sampled_from([0.5, 0.8]),
        window_s=st.integers(1, 40),
    )
    def begin(self, threshold: int, minimum: int, reset_s: int, rate: float, slow: float, window_s: int) -> None:
        self.settings = Breaker(
            failure_threshold=threshold,
            minimum_calls=minimum,
            failure_rate=rate,
            slow_rate=slow,
            window_s=float(window_s),
            reset_timeout_s=float(reset_s),
            max_reset_timeout_s=60.0,
        )
        self.state: State = Closed()
        self.now = 0.0
        self.under_way: list[tuple[int, int]] = []
        self.era = 0
        self.what = "closed"
        self.history: list[tuple[int, str]] = []
        """Seconds and ends of the calls of this era."""
        self.openings = 0
        self.barred_until = 0.0
        self.forgiven_at = 0.0

    @rule(seconds=st.floats(0, 40, allow_nan=False))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def model_admits(self) -> bool:
        return self.what == "closed" or (self.what != "isolated" and self.now >= self.barred_until)

    @rule()
    def a_request_comes(self) -> None:
        admitted = would_admit(self.state, self.now)
        assert admitted == self.model_admits()
        if not admitted:
            return
        self.state = admit(self.state, self.now, LEASE_S)
        self.model_trial_begins()
        self.under_way.append((self.state.generation, self.era))

    def model_trial_begins(self) -> None:
        if self.what in ("open", "trial"):
            self.era += 1
            self.what, self.barred_until = "trial", self.now + LEASE_S

    @rule()
    def somebody_probes(self) -> None:
        state = trial_by_hand(self.state, self.now, LEASE_S)
        is_busy = self.what == "trial" and self.now < self.barred_until
        assert (state is None) == is_busy
        if state is not None:
            self.state = state
            self.model_trial_begins()
            self.under_way.append((self.state.generation, self.era))

    @rule()
    def somebody_isolates(self) -> None:
        self.state = isolate(self.state)
        self.era += self.what != "isolated"
        self.what = "isolated"

    @rule()
    def somebody_closes(self) -> None:
        self.state = reset(self.state)
        self.model_is_new()

    @rule()
    def the_process_is_started_anew(self) -> None:
        self.state = renewed(self.state)
        if self.what != "isolated":
            self.model_is_new()

    def model_is_new(self) -> None:
        self.era += 1
        self.what, self.history, self.openings, self.forgiven_at = "closed", [], 0, 0.0

    @rule()
    def an_answer_comes_in_a_panic(self) -> None:
        self.state = answered(self.state, self.now, settings=self.settings)
        if self.what in ("open", "trial"):
            self.model_closes()

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0), effect=st.sampled_from(["success", "slow", "failure", "neutral"]))
    def a_request_ends(self, index: int, effect: str) -> None:
        permit, era = self.under_way.pop(index % len(self.under_way))
        self.state = record(
            self.state,
            permit,
            "success" if effect == "slow" else effect,
            self.now,
            settings=self.settings,
            jitter=0.0,
            is_slow=effect == "slow",
        )
        if era != self.era or self.what == "isolated":
            return
        if self.what == "trial":
            self.model_trial_ends(effect)
        elif effect != "neutral":
            self.history.append((math.floor(self.now), effect))
            if self.model_trips(effect):
                self.openings = self.openings + 1 if self.now < self.forgiven_at else 1
                self.model_opens()

    def model_trips(self, effect: str) -> bool:
        threshold = self.settings.failure_threshold
        if [each for _, each in self.history[-threshold:]] == ["failure"] * threshold:
            return True
        recent = [each for second, each in self.history if second > math.floor(self.now) - self.settings.window_s]
        share = {"failure": self.settings.failure_rate, "slow": self.settings.slow_rate}.get(effect)
        if share is None or len(recent) < self.settings.minimum_calls or len(recent) < threshold:
            return False
        return recent.count(effect) / len(recent) >= share - 1e-9

    def model_trial_ends(self, effect: str) -> None:
        if effect in ("success", "slow"):
            self.model_closes()
        elif effect == "failure":
            self.openings += 1
            self.model_opens()
        else:
            self.era += 1
            self.what, self.barred_until = "open", self.now

    def model_open_s(self) -> float:
        longest = max(60.0, self.settings.reset_timeout_s)
        return min(longest, self.settings.reset_timeout_s * 2 ** (self.openings - 1))

    def model_opens(self) -> None:
        self.era += 1
        self.what, self.barred_until = "open", self.now + self.model_open_s()

    def model_closes(self) -> None:
        self.era += 1
        self.what, self.history, self.forgiven_at = "closed", [], self.now + self.model_open_s()

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "settings"):
            return
        kinds = {Closed: "closed", Open: "open", HalfOpen: "trial", Isolated: "isolated"}
        assert kinds[type(self.state)] == self.what
        assert would_admit(self.state, self.now) == self.model_admits()
        if self.what in ("open", "trial"):
            assert math.isclose(wait_s(self.state, self.now), max(0.0, self.barred_until - self.now), abs_tol=1e-6)


BreakerAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreakerAgainstModel = BreakerAgainstModel.TestCase
