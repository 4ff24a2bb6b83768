"""Who makes room for a model that is asked for, and how long a load is said to take."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.on_demand.room import GIB, Holder, budget_bytes, expected_s, left_s, shortage, to_evict, too_much
from schemas.on_demand import Allotment


def holder(name: str, size: int, used_at: float, *, is_idle: bool = True) -> Holder:
    return Holder(name, name, size, used_at, is_idle)


holders = st.lists(
    st.builds(
        Holder,
        worker=st.uuids().map(str),
        service=st.just("some"),
        memory_bytes=st.integers(0, 20),
        used_at=st.integers(0, 5).map(float),
        is_idle=st.booleans(),
    ),
    max_size=7,
    unique_by=lambda one: one.worker,
)


def fits(left: Sequence[Holder], need: int, budget: int) -> bool:
    return sum(one.memory_bytes for one in left) + need <= budget


@given(holders, st.integers(1, 30), st.integers(0, 60))
def test_what_is_chosen_makes_room_and_is_never_in_use(some: list[Holder], need: int, budget: int) -> None:
    chosen = to_evict(some, need, budget)
    idle = [one for one in some if one.is_idle]
    if chosen is None:
        assert not fits([one for one in some if one not in idle], need, budget)
        return
    assert set(chosen) <= set(idle)
    assert fits([one for one in some if one not in chosen], need, budget)


@given(holders, st.integers(1, 30), st.integers(0, 60))
def test_nobody_is_dropped_for_nothing(some: list[Holder], need: int, budget: int) -> None:
    chosen = to_evict(some, need, budget) or ()
    for fewer in combinations(chosen, max(0, len(chosen) - 1)):
        if chosen:
            assert not fits([one for one in some if one not in fewer], need, budget)


@given(holders, st.integers(1, 30), st.integers(0, 60))
def test_the_least_recently_used_go_first(some: list[Holder], need: int, budget: int) -> None:
    """Whoever stays although an idle one that was used later goes, would have made no room for it to stay."""
    chosen = to_evict(some, need, budget) or ()
    if not chosen:
        return
    latest = max(one.used_at for one in chosen)
    for spared in some:
        if spared.is_idle and spared not in chosen and spared.memory_bytes > 0 and spared.used_at < latest:
            older = [one for one in some if one.is_idle and one.used_at < latest]
            assert not fits([one for one in some if one not in older], need, budget)


@given(holders, st.integers(1, 30), st.integers(0, 60), st.randoms())
def test_the_order_of_the_files_decides_nothing(some: list[Holder], need: int, budget: int, random: object) -> None:
    mixed = list(some)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert to_evict(mixed, need, budget) == to_evict(some, need, budget)


def test_examples() -> None:
    old, new, busy = holder("old", 4, 1.0), holder("new", 4, 2.0), holder("busy", 4, 0.0, is_idle=False)
    assert to_evict([old, new, busy], 4, 16) == ()
    assert to_evict([old, new, busy], 4, 12) == (old,)
    assert to_evict([old, new, busy], 8, 12) == (old, new)
    assert to_evict([old, new, busy], 9, 12) is None
    large = holder("large", 10, 3.0)
    assert to_evict([old, large], 10, 14) == (large,)


def test_who_goes_when_less_is_left_than_all_hold() -> None:
    old, new, used = (
        Holder("a", "old", 4 * GIB, 1.0, is_idle=True),
        Holder("b", "new", 4 * GIB, 2.0, is_idle=True),
        Holder("c", "used", 4 * GIB, 0.0, is_idle=False),
    )
    assert too_much([old, new, used], 12 * GIB) == ()
    assert too_much([old, new, used], 11 * GIB) == (old,)
    assert too_much([old, new, used], 5 * GIB) == (old, new)
    assert too_much([old, new, used], GIB) == (old, new)  # what is in use stays until it is idle
    assert too_much([used], 0) == ()


def test_the_budget_is_what_the_node_has_less_what_is_set_aside() -> None:
    assert budget_bytes((), 64 * GIB) is None
    assert budget_bytes([Allotment(memory_gib=32, set_aside_gib=8)], 64 * GIB) == 24 * GIB
    assert budget_bytes([Allotment(set_aside_gib=8)], 64 * GIB) == 56 * GIB
    assert budget_bytes([Allotment(set_aside_gib=8)], None) is None
    assert budget_bytes([Allotment(memory_gib=4, set_aside_gib=8)], None) == 0
    # Of two stacks: the services of both are taken off, the node's reserve once.
    two = [Allotment(memory_gib=32, set_aside_gib=8, reserve_gib=2), Allotment(set_aside_gib=5, reserve_gib=2)]
    assert budget_bytes(two, 64 * GIB) == 21 * GIB


def test_a_shortage_names_who_holds_the_memory() -> None:
    others = [holder("a", 2 * GIB, 0.0), holder("b", 4 * GIB, 0.0, is_idle=False), holder("cold", 0, 0.0)]
    text = shortage("mine", 3 * GIB, 7 * GIB, others)
    assert "'mine' needs 3.0 GiB" in text
    assert "'b' 4.0 GiB (in use), 'a' 2.0 GiB is held" in text
    assert "cold'" not in text
    assert "leaves 7.0 GiB to on-demand models" in shortage("mine", 8 * GIB, 7 * GIB, others)


@pytest.mark.parametrize(
    ("expected", "elapsed", "progress", "left"),
    [
        (12.0, 2.0, 0.1, 10.0),
        (12.0, 11.9, 0.5, 11.9),  # it takes longer than the last time: by what is done
        (2.0, 60.0, 0.75, 20.0),
        (2.0, 60.0, None, 1.0),
        (2.0, 60.0, 1.0, 1.0),
    ],
)
def test_the_rest_of_a_load(expected: float, elapsed: float, progress: float | None, left: float) -> None:
    assert left_s(expected, elapsed, progress) == pytest.approx(left)


def test_a_load_is_expected_to_take_as_long_as_the_last_one() -> None:
    assert expected_s(7.5, 10 * GIB) == 7.5
    assert expected_s(None, 20_000_000_000) == pytest.approx(22.0)
