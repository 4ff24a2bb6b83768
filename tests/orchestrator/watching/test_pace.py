"""When a watcher looks and when it acts, with the clock as data."""

from __future__ import annotations

import pytest

from orchestrator.watching.pace import FIRST_RETRY_S, LONGEST_RETRY_S, LOOK_S, PATIENCE_S, QUIET_LOOK_S, SETTLE_S, Pace


def test_without_changes_it_looks_once_in_a_period():
    pace = Pace(look_at=0.0).begun().looked(100.0)
    assert pace.next_look == 100.0 + LOOK_S


def test_while_all_is_well_it_looks_less_often_and_hears_of_changes_as_soon():
    pace = Pace(look_at=0.0).begun().looked(100.0, is_quiet=True)
    assert LOOK_S < pace.next_look - 100.0 == QUIET_LOOK_S
    assert pace.changed(110.0).next_look == 110.0 + SETTLE_S
    assert pace.looked(200.0).next_look == 200.0 + LOOK_S


def test_a_change_is_looked_at_as_soon_as_it_settles():
    pace = Pace(look_at=1000.0).changed(10.0)
    assert pace.next_look == 10.0 + SETTLE_S


def test_a_burst_of_changes_makes_one_look():
    pace = Pace(look_at=1000.0)
    for tick in range(5):
        pace = pace.changed(10.0 + tick * SETTLE_S / 2)
    assert pace.next_look == pytest.approx(10.0 + 3 * SETTLE_S)


def test_changes_that_never_settle_cannot_put_a_look_off():
    pace = Pace(look_at=1000.0)
    for tick in range(100):
        pace = pace.changed(10.0 + tick * SETTLE_S / 2)
    assert pace.next_look == 10.0 + PATIENCE_S


def test_a_change_never_puts_off_a_look_that_is_due():
    assert Pace(look_at=10.1).changed(10.0).next_look == 10.1


def test_a_change_during_a_look_causes_another():
    pace = Pace(look_at=0.0).changed(1.0).begun()
    assert pace.looked(2.0).next_look == 2.0 + LOOK_S
    assert pace.changed(1.5).looked(2.0).next_look == 1.5 + SETTLE_S


@pytest.mark.parametrize(("within_s", "expected_s"), [(None, LOOK_S), (4.0, 4.0), (0.0, SETTLE_S), (500.0, LOOK_S)])
def test_a_backoff_that_ends_soon_is_looked_at_then(within_s, expected_s):
    assert Pace(look_at=0.0).looked(100.0, within_s).next_look == pytest.approx(100.0 + expected_s)


def test_a_plan_that_failed_waits_longer_each_time():
    pace, now, waits = Pace(look_at=0.0), 0.0, []
    for _ in range(9):
        pace = pace.acted(now, "same", is_complete=False)
        assert pace.failed is not None
        waits.append(pace.failed.retry_at - now)
        assert not pace.may_act("same", pace.failed.retry_at - 0.001)
        now = pace.failed.retry_at
        assert pace.may_act("same", now)
    assert waits[:4] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S, 4 * FIRST_RETRY_S, 8 * FIRST_RETRY_S]
    assert max(waits) == waits[-1] == LONGEST_RETRY_S


def test_another_plan_is_carried_out_at_once():
    pace = Pace(look_at=0.0).acted(0.0, "one", is_complete=False)
    assert not pace.may_act("one", 1.0)
    assert pace.may_act("other", 1.0)
    again = pace.acted(1.0, "other", is_complete=False)
    assert again.failed is not None
    assert again.failed.times == 1


def test_success_ends_the_waiting():
    pace = Pace(look_at=0.0).acted(0.0, "one", is_complete=False).acted(1.0, "two", is_complete=True)
    assert pace.may_act("one", 1.0)
