"""The breaker against a reference model that keeps a plain list of what happened."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.gateway.routing.breaker import Closed, HalfOpen, Open, State, admit, record, wait_s, would_admit
from schemas.policy import Breaker

LEASE_S = 20.0
SETTINGS = Breaker(failure_threshold=3, reset_timeout_s=10.0, max_reset_timeout_s=35.0)


def fail(state: State, now: float, times: int = 1) -> State:
    for _ in range(times):
        state = record(state, state.generation, "failure", now, settings=SETTINGS, jitter=0.0)
    return state


def test_opens_after_exactly_the_threshold() -> None:
    state = fail(Closed(), 0.0, times=2)
    assert isinstance(state, Closed)
    state = fail(state, 0.0)
    assert isinstance(state, Open)
    assert wait_s(state, 0.0) == 10.0


def test_a_success_between_failures_starts_the_count_again() -> None:
    state = fail(Closed(), 0.0, times=2)
    state = record(state, state.generation, "success", 0.0, settings=SETTINGS, jitter=0.0)
    assert isinstance(fail(state, 0.0, times=2), Closed)


def test_neutral_results_neither_count_nor_reset() -> None:
    state = fail(Closed(), 0.0, times=2)
    state = record(state, state.generation, "neutral", 0.0, settings=SETTINGS, jitter=0.0)
    assert isinstance(fail(state, 0.0), Open)


def test_open_time_doubles_to_its_cap() -> None:
    state, now, waits = fail(Closed(), 0.0, times=3), 0.0, []
    for _ in range(4):
        waits.append(wait_s(state, now))
        now += waits[-1]
        state = fail(admit(state, now, LEASE_S), now)
    assert waits == [10.0, 20.0, 35.0, 35.0]


def test_half_open_lets_exactly_one_through() -> None:
    state = fail(Closed(), 0.0, times=3)
    assert not would_admit(state, 9.9)
    assert would_admit(state, 10.0)
    state = admit(state, 10.0, LEASE_S)
    assert not any(would_admit(state, 10.0 + tenth / 10) for tenth in range(199))


def test_a_trial_that_hangs_gives_way_when_its_lease_ends() -> None:
    hung = admit(fail(Closed(), 0.0, times=3), 10.0, LEASE_S)
    assert would_admit(hung, 30.0)
    second = admit(hung, 30.0, LEASE_S)
    late = record(second, hung.generation, "success", 31.0, settings=SETTINGS, jitter=0.0)
    assert late == second, "the late result of the first trial says nothing about the second"
    closed = record(second, second.generation, "success", 31.0, settings=SETTINGS, jitter=0.0)
    assert isinstance(closed, Closed)


def test_a_cancelled_trial_leaves_room_for_the_next_at_once() -> None:
    trial = admit(fail(Closed(), 0.0, times=3), 10.0, LEASE_S)
    state = record(trial, trial.generation, "neutral", 11.0, settings=SETTINGS, jitter=0.0)
    assert would_admit(state, 11.0)
    assert wait_s(fail(admit(state, 11.0, LEASE_S), 11.0), 11.0) == 20.0, "the streak is kept"


def test_jitter_only_adds() -> None:
    state = fail(Closed(), 0.0, times=2)
    opened = record(state, state.generation, "failure", 0.0, settings=SETTINGS, jitter=0.1)
    assert wait_s(opened, 0.0) == 11.0


class BreakerAgainstModel(RuleBasedStateMachine):
    """Requests start and end in any order while time passes."""

    @initialize(threshold=st.integers(1, 4), reset_s=st.integers(1, 20))
    def begin(self, threshold: int, reset_s: int) -> None:
        self.settings = Breaker(failure_threshold=threshold, reset_timeout_s=float(reset_s), max_reset_timeout_s=60.0)
        self.state: State = Closed()
        self.now = 0.0
        self.under_way: list[tuple[int, int]] = []
        # The model: an era begins whenever the breaker changes; only results of the present era count.
        self.era = 0
        self.consecutive = 0
        self.is_open = False
        self.openings = 0
        self.barred_until = 0.0
        self.trial_era: int | None = None

    @rule(seconds=st.floats(0, 40, allow_nan=False))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def model_admits(self) -> bool:
        return not self.is_open or self.now >= self.barred_until

    @rule()
    def a_request_comes(self) -> None:
        admitted = would_admit(self.state, self.now)
        assert admitted == self.model_admits()
        if not admitted:
            return
        self.state = admit(self.state, self.now, LEASE_S)
        if self.is_open:
            self.era += 1
            self.trial_era = self.era
            self.barred_until = self.now + LEASE_S
        self.under_way.append((self.state.generation, self.era))

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0), effect=st.sampled_from(["success", "failure", "neutral"]))
    def a_request_ends(self, index: int, effect: str) -> None:
        permit, era = self.under_way.pop(index % len(self.under_way))
        self.state = record(self.state, permit, effect, self.now, settings=self.settings, jitter=0.0)
        if era != self.era:
            return
        if self.is_open:
            self.model_trial_ends(effect)
        elif effect == "success":
            self.consecutive = 0
        elif effect == "failure":
            self.consecutive += 1
            if self.consecutive >= self.settings.failure_threshold:
                self.openings = 1
                self.model_opens()

    def model_trial_ends(self, effect: str) -> None:
        self.trial_era = None
        if effect == "success":
            self.era += 1
            self.is_open, self.consecutive, self.openings = False, 0, 0
        elif effect == "failure":
            self.openings += 1
            self.model_opens()
        else:
            self.era += 1
            self.barred_until = self.now

    def model_opens(self) -> None:
        self.era += 1
        self.is_open = True
        longest = max(60.0, self.settings.reset_timeout_s)
        self.barred_until = self.now + min(longest, self.settings.reset_timeout_s * 2 ** (self.openings - 1))

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "settings"):
            return
        assert isinstance(self.state, Closed) == (not self.is_open)
        assert isinstance(self.state, HalfOpen) == (self.trial_era is not None)
        assert would_admit(self.state, self.now) == self.model_admits()


BreakerAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreakerAgainstModel = BreakerAgainstModel.TestCase
