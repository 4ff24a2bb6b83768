"""What the on-demand workers of a node know of each other, without the workers."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from runtime.worker.on_demand import registry
from runtime.worker.on_demand.place import Place
from runtime.worker.on_demand.registry import Entry, NoRoomError, Registry
from runtime.worker.on_demand.room import GIB, expected_s, longest_s
from runtime.worker.settings import OnDemand, Settings
from tests.fakes.upstream import Exchange, FakeUpstream


def entry(service: str, memory_gib: float, *, used_at: float = 1.0, is_idle: bool = True, url: str = "") -> Entry:
    return Entry(
        service=service, model="m", pid=1, url=url or "http://127.0.0.1:9", key="k", memory_bytes=int(memory_gib * GIB),
        phase="ready", is_idle=is_idle, used_at=used_at,
    )  # fmt: skip


def joined(root: Path, budget_gib: float | None = 8.0) -> Registry:
    allotment = root / "budget.json"
    if budget_gib is not None:
        allotment.write_text(f'{{"memory_gib": {budget_gib}, "set_aside_gib": 0}}')
    return Registry(root / "room", allotment)


async def test_two_that_claim_at_once_never_get_more_than_there_is(tmp_path: Path) -> None:
    workers = [joined(tmp_path) for _ in range(5)]
    claims = (worker.claim(entry(f"s{number}", 3.0, is_idle=False)) for number, worker in enumerate(workers))
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 3  # 8 GiB hold two of 3
    assert all(isinstance(outcome, NoRoomError) for outcome in refused)
    for worker in workers:
        worker.close()


async def test_a_neighbour_that_refuses_is_left_in_peace_and_the_next_one_is_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def answering(name: str, status: int, worker: Registry, own: Entry) -> FakeUpstream:
        async def behave(exchange: Exchange) -> None:
            asked.append(name)
            assert exchange.seen.headers["authorization"] == "Bearer k"
            if status == 200:
                worker.write(own.model_copy(update={"memory_bytes": 0, "phase": "cold"}))
            await exchange.answer(status, {})

        return FakeUpstream(behave)

    old, new, mine = (joined(tmp_path) for _ in range(3))
    one, two = entry("old", 4.0, used_at=1.0), entry("new", 4.0, used_at=2.0)
    async with answering("old", 409, old, one) as busy, answering("new", 200, new, two) as idle:
        old.write(one.model_copy(update={"url": busy.url}))
        new.write(two.model_copy(update={"url": idle.url}))
        await mine.claim(entry("mine", 3.0))
    assert asked == ["old", "new"]
    with pytest.raises(NoRoomError, match=r"'old' 4\.0 GiB"):
        await mine.claim(entry("mine", 5.0))
    for worker in (old, new, mine):
        worker.close()


async def test_what_cannot_be_read_takes_part_in_nothing(tmp_path: Path) -> None:
    broken, mine = joined(tmp_path), joined(tmp_path)
    (tmp_path / "room" / "workers" / f"{broken.name}.json").write_text("{")
    await mine.claim(entry("mine", 8.0))
    broken.close()
    mine.close()


async def test_nothing_is_loaded_where_nobody_can_read_how_much_there_is(tmp_path: Path) -> None:
    mine = joined(tmp_path, None)
    with pytest.raises(NoRoomError, match=r"budget\.json cannot be read"):
        await mine.claim(entry("mine", 1.0))
    (tmp_path / "budget.json").write_text('{"set_aside_gib": 0}')
    await mine.claim(entry("mine", 1e-6))
    mine.close()


async def test_each_finds_for_itself_who_goes_when_less_is_left(tmp_path: Path) -> None:
    old, new = joined(tmp_path), joined(tmp_path)
    one, two = entry("old", 4.0, used_at=1.0), entry("new", 4.0, used_at=2.0)
    old.write(one)
    new.write(two)
    assert (old.is_too_much(one), new.is_too_much(two)) == (False, False)
    allotment = tmp_path / "budget.json"
    allotment.write_text('{"memory_gib": 8, "set_aside_gib": 3}')
    assert (old.is_too_much(one), new.is_too_much(two)) == (True, False)
    old.write(one.model_copy(update={"phase": "unloading", "is_idle": False}))
    assert not new.is_too_much(two)  # one that goes is enough
    old.write(one)
    allotment.write_text('{"memory_gib": 8, "set_aside_gib": 5}')
    assert (old.is_too_much(one), new.is_too_much(two)) == (True, True)
    (tmp_path / "room" / "theirs.json").write_text("no JSON")  # of another stack
    assert not old.is_too_much(one)
    for worker in (old, new):
        worker.close()


async def test_what_another_stack_always_runs_is_not_given_away(tmp_path: Path) -> None:
    mine = joined(tmp_path)
    (tmp_path / "room" / "other.json").write_text('{"memory_gib": 8, "set_aside_gib": 5}')
    with pytest.raises(NoRoomError, match=r"leaves 3\.0 GiB"):
        await mine.claim(entry("mine", 4.0))
    (tmp_path / "room" / "other.json").write_text("{")
    with pytest.raises(NoRoomError, match=r"other\.json cannot be read"):
        await mine.claim(entry("mine", 1.0))
    mine.close()


async def test_a_stack_that_is_taken_down_while_room_is_made_takes_nothing(tmp_path: Path) -> None:
    """Its file is found, and gone when it is read: a link to nothing is both."""
    mine = joined(tmp_path)
    (tmp_path / "room" / "other.json").symlink_to(tmp_path / "nowhere")
    await mine.claim(entry("mine", 8.0))
    assert not mine.is_too_much(entry("mine", 8.0))
    mine.close()


async def test_what_the_files_declare_now_goes_before_what_a_worker_reckons(tmp_path: Path) -> None:
    mine, other = joined(tmp_path), joined(tmp_path)
    budget = tmp_path / "budget.json"
    budget.write_text('{"memory_gib": 8, "set_aside_gib": 0, "needs_gib": {"mine": 9}}')
    with pytest.raises(NoRoomError, match=r"'mine' needs 9\.0 GiB"):
        await mine.claim(entry("mine", 1.0))
    budget.write_text('{"memory_gib": 8, "set_aside_gib": 0, "needs_gib": {"mine": 6}}')
    await mine.claim(entry("mine", 1.0))
    mine.write(entry("mine", 1.0, is_idle=False))
    with pytest.raises(NoRoomError, match=r"'mine' 6\.0 GiB \(in use\)"):
        await other.claim(entry("other", 3.0))
    mine.close()
    other.close()


async def test_a_neighbour_that_never_ends_making_room_holds_up_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOCK_S", 0.1)
    mine = joined(tmp_path)
    lock = os.open(tmp_path / "room" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(NoRoomError, match="making room"):
        await mine.claim(entry("mine", 1.0))
    os.close(lock)
    await mine.claim(entry("mine", 1.0))
    mine.close()


def test_the_last_load_of_a_model_is_remembered_for_all_workers_of_the_node(tmp_path: Path) -> None:
    one, two = joined(tmp_path), joined(tmp_path)
    assert two.last_load_s("/models/m") is None
    one.remember_load("/models/m", 12.3456)
    assert (two.last_load_s("/models/m"), two.last_load_s("/models/n")) == (12.346, None)
    for path in (tmp_path / "room" / "loads").iterdir():
        path.write_text("[]")
    assert two.last_load_s("/models/m") is None
    one.close()
    two.close()
    assert not list((tmp_path / "room" / "workers").iterdir())


def test_a_load_takes_as_long_as_the_model_and_its_draft_together(tmp_path: Path) -> None:
    for name, size in (("model", 3 * GIB), ("draft", GIB)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(size)  # takes no room on the disk
    settings = Settings(str(tmp_path / "model"), "m", "127.0.0.1", 1, token=None, draft_dir=str(tmp_path / "draft"))
    place = Place(settings, OnDemand(str(tmp_path / "room"), "s"))
    try:
        assert place.expected_s() == expected_s(None, 4 * GIB)
        assert place.longest_s() == longest_s(4 * GIB)
    finally:
        place.leave()
