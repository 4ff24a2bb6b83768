"""Counting tokens and measuring memory."""

import os
import sys

import pytest

from runtime.worker import status
from runtime.worker.status import RATE_WINDOW_S, RECENT_REQUESTS, Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def test_the_rate_is_tokens_after_the_first_round_over_the_time_since_it(meter: Meter, clock: Clock) -> None:
    for _ in range(5):
        meter.add_round(2, is_idle=False)
        clock.now += 0.5
    tokens = meter.tokens()
    assert tokens.per_s == 4.0
    assert tokens.generated == 10
    assert tokens.last_age_s == 0.5


def test_an_idle_gap_does_not_lower_the_rate(meter: Meter, clock: Clock) -> None:
    meter.add_round(1, is_idle=True)
    clock.now += 5
    for _ in range(3):
        meter.add_round(1, is_idle=False)
        clock.now += 0.1
    assert meter.tokens().per_s == pytest.approx(10.0)


def test_the_rate_is_zero_when_the_window_has_passed(meter: Meter, clock: Clock) -> None:
    meter.add_round(1, is_idle=False)
    clock.now += 1
    meter.add_round(1, is_idle=False)
    clock.now += RATE_WINDOW_S + 1
    assert meter.tokens().per_s == 0
    assert meter.tokens().generated == 2


def test_rounds_without_tokens_leave_the_last_token_alone(meter: Meter) -> None:
    meter.add_round(0, is_idle=False)
    assert meter.tokens().last_age_s is None


def test_a_place_is_free_sooner_the_shorter_requests_are_and_the_more_places_there_are(meter: Meter) -> None:
    assert meter.wait_s(8) == 0
    meter.add_end(90.0)
    meter.add_end(70.0)
    assert (meter.wait_s(8), meter.wait_s(80)) == (10.0, 1.0)
    for _ in range(RECENT_REQUESTS):
        meter.add_end(16.0)
    assert meter.wait_s(8) == 2.0


def test_idle_time_does_not_make_a_full_queue_look_slow(meter: Meter, clock: Clock) -> None:
    meter.add_end(4.0)
    clock.now += 3600
    assert meter.wait_s(8) == 0.5


def test_memory_is_of_this_process() -> None:
    memory = status.memory(5, 6)
    assert (memory.model_bytes, memory.kv_bytes) == (5, 6)
    assert memory.rss_peak_bytes > 1_000_000
    if sys.platform == "linux":
        assert memory.rss_bytes is not None
        assert memory.rss_bytes % os.sysconf("SC_PAGE_SIZE") == 0
        assert 1_000_000 < memory.rss_bytes < 100 * memory.rss_peak_bytes
