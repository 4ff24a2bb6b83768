"""The watching of directories, where the tests of reloading do not reach."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway import watch
from tests.runtime.gateway.harness import until


class Calls:
    def __init__(self) -> None:
        self.changes = 0
        self.restarts = 0

    def changed(self) -> None:
        self.changes += 1

    def restarted(self) -> None:
        self.restarts += 1


def start(directory: Path, calls: Calls, pattern: str = "*.json") -> asyncio.Task[None]:
    return asyncio.create_task(
        watch.watch_files(directory, pattern, is_recursive=False, on_change=calls.changed, on_restart=calls.restarted)
    )


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_watcher_that_fails_begins_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RESTART_S", 0.01)
    works, calls = watch._watch_inode, Calls()
    failures = iter([OSError("no watches left"), ValueError("bug")])

    async def fails_twice(*arguments: object, **options: object) -> None:
        for failure in failures:
            raise failure
        await works(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "_watch_inode", fails_twice)
    task = start(tmp_path, calls)
    await until(lambda: calls.restarts == 2 and calls.changes)
    seen = calls.changes
    (tmp_path / "routes.json").write_text("{}")
    await until(lambda: calls.changes > seen)
    await stop(task)


async def test_a_directory_that_comes_later_is_watched_from_then_on(tmp_path: Path) -> None:
    calls, directory = Calls(), tmp_path / "later"
    task = start(directory, calls)
    await asyncio.sleep(0.05)
    assert calls.changes == 0
    directory.mkdir()
    await until(lambda: calls.changes)
    seen = calls.changes
    (directory / "routes.json").write_text("{}")
    await until(lambda: calls.changes > seen)
    await stop(task)


async def test_what_no_notification_tells_is_seen_also_when_it_changes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_MS", 50)
    elsewhere, directory = tmp_path / "elsewhere", tmp_path / "watched"
    elsewhere.mkdir()
    directory.mkdir()
    (elsewhere / "target").write_text("{}")
    (directory / "routes.json").symlink_to(elsewhere / "target")

    class Writing(Calls):
        def changed(self) -> None:
            super().changed()
            if self.changes == 1:
                (elsewhere / "target").write_text('{"new": "text"}')

    calls = Writing()
    task = start(directory, calls)
    await until(lambda: calls.changes == 2, what="the target is seen to have changed")
    await stop(task)


async def test_other_files_of_the_directory_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, calls, looks = watch._signature, Calls(), 0

    def counted(*arguments: Any, **options: Any) -> watch.Signature:
        nonlocal looks
        looks += 1
        return look(*arguments, **options)

    monkeypatch.setattr(watch, "LOOK_MS", 100)
    monkeypatch.setattr(watch, "_signature", counted)
    task = start(tmp_path, calls, "routes.json")
    await until(lambda: calls.changes)
    for number in range(20):
        (tmp_path / f"unit-{number}.log").write_text("noise")
    before = looks
    await until(lambda: looks >= before + 3, what="what was written is seen")
    assert calls.changes == 1
    (tmp_path / "routes.json").write_text("{}")
    await until(lambda: calls.changes > 1)
    await stop(task)
