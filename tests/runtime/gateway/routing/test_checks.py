"""When an endpoint is asked for a token although no client asks."""

from __future__ import annotations

import pytest

from runtime.gateway.routing.breaker import Closed, HalfOpen, Open, State
from runtime.gateway.routing.checks import LONGEST_SUSPECT_S, SUSPECT_S, UNDECIDED_S, check_due
from runtime.gateway.routing.standing import Probe, Standing

NOW = 100.0
REFUSED = Probe(95.0, "credentials refused", "neutral")
SILENT = Probe(95.0, "no first content", "failure")


def due(state: State, check_s: float | None = None, **more: object) -> float | None:
    return check_due(Standing(breaker=state, **more), check_s, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (due(Closed()), None),
        (due(Closed(), 30.0, heard_at=90.0), 120.0),
        (due(Closed(), 30.0, heard_at=10.0), 40.0),
        (due(Closed(), 30.0, heard_at=10.0, in_flight=2), 130.0),
        (due(Closed(), 30.0, heard_at=10.0, busy_until=140.0), 140.0),
        (due(Closed(0, 1), failed_at=99.0), 99.0 + SUSPECT_S),
        (due(Closed(0, 1), 2.0, failed_at=99.0), 101.0),
        (due(Closed(0, 1), 30.0, failed_at=99.0, heard_at=98.0), 99.0 + SUSPECT_S),
        (due(Closed(0, 1), failed_at=99.0, in_flight=1), NOW + SUSPECT_S),
        (due(Closed(), failed_checks=1, probe=SILENT), 95.0 + SUSPECT_S),
        (due(Closed(), 60.0, failed_checks=2, probe=SILENT), 95.0 + 2 * SUSPECT_S),
        (due(Closed(), 60.0, failed_checks=9, probe=SILENT), 95.0 + LONGEST_SUSPECT_S),
        (due(Closed(), 3.0, failed_checks=9, probe=SILENT), 98.0),
        (due(Closed(), failed_checks=100_000, probe=SILENT), 95.0 + LONGEST_SUSPECT_S),
        (due(Closed(0, 2), failed_checks=3, probe=SILENT, failed_at=99.0), 95.0 + 4 * SUSPECT_S),
        (due(Closed(), failed_checks=1, probe=SILENT, in_flight=1), NOW + SUSPECT_S),
        (due(Closed(), failed_checks=1, probe=SILENT, busy_until=140.0), 140.0),
        (due(Open(1, 160.0, 1)), 160.0),
        (due(Open(1, 60.0, 1), probe=SILENT), 60.0),
        (due(Open(1, 60.0, 1), busy_until=105.0), 105.0),
        (due(Open(1, 60.0, 1), probe=REFUSED), 95.0 + UNDECIDED_S),
        (due(Open(1, 60.0, 1), 10.0, probe=REFUSED), 105.0),
        (due(Open(1, 60.0, 1), probe=Probe(99.5, "loading", "neutral")), 100.5),
        (due(Open(1, 60.0, 1), busy_until=104.5, probe=Probe(99.5, "loading", "neutral")), 104.5),
        (due(HalfOpen(2, 130.0, 1)), 130.0),
        (due(HalfOpen(2, 90.0, 1), busy_until=110.0), 110.0),
    ],
)
def test_the_time_of_the_next_check(found: float | None, expected: float | None) -> None:
    assert found == expected
