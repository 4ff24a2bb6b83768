"""How long a loaded model may stay, by its last use."""

from __future__ import annotations

from runtime.worker.on_demand.use import FRESH_S, Use


def test_a_model_that_was_never_loaded_is_never_looked_at() -> None:
    use = Use()
    assert use.next_look(5.0) is None
    assert not use.is_over(1e9, 5.0)
    assert not use.is_stale(1e9)


def test_a_model_stays_for_its_idle_time_behind_the_last_use() -> None:
    use = Use()
    use.note(100.0, 1.0)
    assert use.next_look(5.0) == 105.0
    assert not use.is_over(104.9, 5.0)
    assert use.is_over(105.0, 5.0)
    use.note(104.0, 2.0)
    assert (use.next_look(5.0), use.at) == (109.0, 2.0)
    assert use.next_look(None) is None
    assert not use.is_over(1e9, None)


def test_a_fresh_model_is_looked_at_when_its_client_should_have_come_back() -> None:
    use = Use()
    use.note(100.0, 1.0, is_fresh=True)
    assert use.next_look(None) == 100.0 + FRESH_S
    assert use.next_look(5.0) == 105.0
    assert use.is_stale(100.0 + FRESH_S)
    use.note(101.0, 2.0)
    assert not use.is_fresh
    assert use.next_look(None) is None
