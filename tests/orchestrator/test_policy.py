"""When something that ended is started again: a table of histories."""

from __future__ import annotations

import pytest

from orchestrator.policy import restart


@pytest.mark.parametrize(
    ("crashes_s", "counted", "is_loop", "delay_s"),
    [
        ((), 0, False, 0.0),
        ((0.0,), 1, False, 5.0),
        ((4.0,), 1, False, 1.0),
        ((6.0,), 1, False, 0.0),
        ((0.0, 20.0), 2, False, 10.0),
        ((0.0, 20.0, 50.0), 3, False, 20.0),
        ((0.0, 20.0, 50.0, 90.0), 4, False, 40.0),
        ((0.0, 700.0), 1, False, 5.0),  # it had run for more than ten minutes in between
        ((0.0, 500.0, 1_000.0, 1_500.0, 2_000.0, 2_500.0, 3_000.0, 3_500.0), 8, False, 300.0),
        ((5_000.0, 5_010.0, 5_030.0, 5_070.0), 4, False, 0.0),
        ((0.0, 20.0, 50.0, 90.0, 600.0), 5, True, 80.0),
        ((0.0, 20.0, 50.0, 90.0, 601.0), 5, False, 80.0),
        ((90_000.0, 90_020.0, 90_050.0, 90_090.0, 90_200.0), 5, True, 0.0),  # it stays so until somebody mends it
    ],
)
def test_backoff_and_crash_loops(crashes_s, counted, is_loop, delay_s):
    judged = restart(crashes_s)
    assert (judged.crashes, judged.is_loop, judged.delay_s) == (counted, is_loop, delay_s)
