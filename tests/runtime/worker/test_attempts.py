"""When a model that could not be loaded is tried again."""

from __future__ import annotations

from runtime.worker.on_demand.attempts import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, ROOM_POLL_S, Attempts


def test_every_failure_doubles_the_backoff_up_to_its_limit() -> None:
    attempts, now, waits = Attempts(), 100.0, []
    for _ in range(20):
        attempts.note_failure("no disk", now)
        left = attempts.backoff_left_s(now)
        assert left is not None
        assert not attempts.may_begin(now + left - 0.01)
        waits.append(left)
        now += left
        assert attempts.may_begin(now)
        assert attempts.backoff_left_s(now) is None
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == max(waits) == LONGEST_BACKOFF_S


def test_a_load_forgets_what_went_wrong_before() -> None:
    attempts = Attempts()
    attempts.note_failure("no disk", 0.0)
    attempts.note_failure("no disk", 10.0)
    attempts.note_shortage("others hold it", 50.0)
    attempts.note_load(3.5)
    assert (attempts.loads, attempts.load_s, attempts.failure, attempts.shortage) == (1, 3.5, None, None)
    assert attempts.backoff_s == FIRST_BACKOFF_S


def test_room_is_not_made_again_at_once_and_that_is_no_failure() -> None:
    attempts = Attempts()
    attempts.note_shortage("others hold it", 100.0)
    assert not attempts.may_begin(100.0 + ROOM_POLL_S / 2)
    assert attempts.backoff_left_s(100.0) is None
    assert attempts.may_begin(100.0 + ROOM_POLL_S)
