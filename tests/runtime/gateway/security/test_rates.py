"""Requests a minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.security.rates import WINDOW_S, Rates


def test_the_limit_holds_for_any_minute_and_says_when_the_next_may_be() -> None:
    rates = Rates()
    assert [rates.take("k", 2, at) for at in (0.0, 30.0)] == [0.0, 0.0]
    assert rates.take("k", 2, 40.0) == 20.0
    assert rates.take("other", 2, 40.0) == 0.0
    assert rates.take("k", 2, 60.0) == 0.0
    assert rates.take("k", 2, 61.0) == 29.0


def test_a_lowered_limit_counts_what_was_made_before() -> None:
    rates = Rates()
    for at in (0.0, 10.0, 20.0):
        rates.take("k", 3, at)
    assert rates.take("k", 1, 30.0) == 20.0 + WINDOW_S - 30.0


def test_keys_that_are_gone_are_forgotten() -> None:
    rates = Rates()
    rates.take("k", 1, 0.0)
    rates.keep({"other"})
    assert rates.take("k", 1, 0.0) == 0.0


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 5))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[int], rpm: int) -> None:
    rates, now, made = Rates(), 0.0, []
    for gap in gaps:
        now += gap
        wait_s = rates.take("k", rpm, now)
        if wait_s == 0.0:
            made.append(now)
        else:
            assert 0 < wait_s <= WINDOW_S
    for start in made:
        assert sum(start <= at < start + WINDOW_S for at in made) <= rpm
