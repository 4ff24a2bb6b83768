"""What is known of how fast an endpoint answers."""

from __future__ import annotations

import pytest

from runtime.gateway.routing.budget import LEAST_RETRIES, Budget
from runtime.gateway.routing.pace import LEAST_SAMPLES, UNKNOWN_RATE, Pace


@pytest.mark.parametrize(
    ("size", "limit_s"),
    [
        (0, 30.0),
        (int(20 * UNKNOWN_RATE), 30.0),
        (int(90 * UNKNOWN_RATE), 100.0),
        (10_000_000, 600.0),
    ],
)
def test_a_long_prompt_may_take_its_time_and_nobody_waits_for_ever(size: int, limit_s: float) -> None:
    assert Pace().first_limit_s(size) == limit_s


def test_the_limit_follows_the_pace_that_was_shown() -> None:
    pace = Pace()
    pace.began(100_000, 50.0)
    assert pace.first_limit_s(200_000) == 110.0
    pace.began(100, 50.0)
    assert pace.first_limit_s(200_000) == 110.0, "a short prompt says nothing about reading"
    for _ in range(100):
        pace.began(100_000, 100.0)
    assert pace.first_limit_s(200_000) == pytest.approx(210.0, rel=0.01)


def test_one_prompt_out_of_the_cache_does_not_shorten_the_limit_by_much() -> None:
    pace = Pace()
    pace.began(100_000, 100.0)
    pace.began(100_000, 10.0)
    assert pace.first_limit_s(500_000) > 300.0


def test_a_percentile_is_told_only_of_enough_answers() -> None:
    pace = Pace()
    for index in range(LEAST_SAMPLES - 1):
        pace.answered(float(index))
    assert pace.percentile_s(0.95) is None
    for index in range(100):
        pace.answered(float(index))
    assert pace.percentile_s(0.95) == pytest.approx(94.0, abs=2.0)


def test_a_fifth_of_what_is_under_way_may_be_tried_again_and_always_three() -> None:
    budget = Budget()
    for _ in range(LEAST_RETRIES):
        assert budget.may_retry()
        budget.begin(is_retry=True)
    assert not budget.may_retry()
    for _ in range(17):
        budget.begin(is_retry=False)
    assert budget.may_retry()
    budget.begin(is_retry=True)
    assert budget.may_retry(), "4 of 21"
    budget.begin(is_retry=True)
    assert not budget.may_retry(), "5 of 22"
