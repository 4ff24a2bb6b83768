"""How an endpoint is, from what was heard of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.gateway.routing.breaker import Closed, HalfOpen, Isolated, Open
from runtime.gateway.routing.health import FRESH_S, Facts, health_of

WELL = Facts(Closed(), answered_age_s=5.0, heard_age_s=5.0)
OPEN = Open(1, 60.0, 1)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(Closed()), "unknown"),
        (Facts(Closed(), in_flight=3), "unknown"),
        (WELL, "ready"),
        (replace(WELL, answered_age_s=FRESH_S), "ready"),
        (replace(WELL, answered_age_s=FRESH_S + 1), "alive"),
        (replace(WELL, answered_age_s=190.0, check_s=100.0), "ready"),
        (replace(WELL, answered_age_s=201.0, check_s=100.0), "alive"),
        (replace(WELL, answered_age_s=FRESH_S, check_s=1.0), "ready"),
        (replace(WELL, in_flight=1), "serving"),
        (replace(WELL, answered_age_s=None), "alive"),
        (replace(WELL, breaker=OPEN), "alive"),
        (replace(WELL, breaker=HalfOpen(1, 9.0, 1)), "alive"),
        (replace(WELL, breaker=Isolated(1)), "ready"),
        (replace(WELL, is_silent=True), "alive"),
        (replace(WELL, is_silent=True, breaker=OPEN), "wedged"),
        (replace(WELL, is_silent=True, breaker=HalfOpen(1, 9.0, 1)), "wedged"),
        (replace(WELL, is_silent=True, breaker=Isolated(1)), "alive"),
        (replace(WELL, is_unready=True), "alive"),
        (replace(WELL, is_unready=True, in_flight=1), "alive"),
        (replace(WELL, is_unready=True, is_silent=True), "wedged"),
        (replace(WELL, is_unready=True, is_unreachable=True), "unknown"),
        (replace(WELL, is_unreachable=True), "unknown"),
        (replace(WELL, is_unreachable=True, breaker=OPEN, is_asleep=True, is_busy=True), "unknown"),
        (replace(WELL, is_asleep=True), "cold"),
        (replace(WELL, is_asleep=True, is_busy=True, is_full=True), "cold"),
        (replace(WELL, is_busy=True), "saturated"),
        (replace(WELL, is_full=True, in_flight=2), "saturated"),
        (replace(WELL, is_refused=True, is_silent=True, breaker=OPEN, is_unreachable=True), "misconfigured"),
    ],
)
def test_the_worst_that_is_true_is_told(facts: Facts, expected: str) -> None:
    assert health_of(facts) == expected
