"""Files are heard of, and the threads that listen end when they are told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Set
from pathlib import Path
from typing import Any

from orchestrator.watching.events import NodeEvents, follow_files
from schemas.base import NodeName, StackName
from schemas.node import Node

DEADLINE_S = 60.0


class Ear:
    """What was heard."""

    def __init__(self) -> None:
        self.files, self.lock = asyncio.Event(), asyncio.Event()

    def files_changed(self) -> None:
        self.files.set()

    def lock_wanted(self) -> None:
        self.lock.set()

    def units_changed(self, gone: Set[str]) -> None:
        raise AssertionError(f"no node was followed: {gone}")


async def _until_heard(file: Path, heard: asyncio.Event) -> None:
    """Write until it is heard: the listening begins a moment after its task."""
    async with asyncio.timeout(DEADLINE_S):
        while not heard.is_set():
            await asyncio.to_thread(file.write_text, file.name)
            await asyncio.sleep(0.1)


async def test_files_and_waiting_commands_are_heard_of_until_the_end_which_waits_for_nothing(tmp_path: Path) -> None:
    conf, state, locks = tmp_path / "conf", tmp_path / "state", tmp_path / "locks"
    for directory in (conf / "nodes", state, locks):
        directory.mkdir(parents=True)
    ear, end = Ear(), asyncio.Event()
    following = asyncio.create_task(follow_files(conf, state, locks / "wanted-s", ear, end))

    await _until_heard(conf / "nodes" / "here.yaml", ear.files)
    await _until_heard(locks / "wanted-s", ear.lock)
    end.set()
    following.cancel()
    done, _ = await asyncio.wait([following], timeout=DEADLINE_S)

    assert done
    assert following.cancelled()


class Followed:
    """A node that counts who follows its units, on which nothing ever changes."""

    def __init__(self) -> None:
        self.shim = self
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def watch(self, stack: str) -> AsyncIterator[AsyncIterator[Mapping[str, str]]]:
        async def nothing() -> AsyncIterator[Mapping[str, str]]:
            await asyncio.Event().wait()
            yield {}

        self.began.set()
        try:
            yield nothing()
        finally:
            self.ended.set()


async def test_a_node_that_is_reached_otherwise_is_followed_anew() -> None:
    name, here = NodeName("a"), Node(reach="ssh", host="one")
    first, same, other = Followed(), Followed(), Followed()

    async def follow(events: NodeEvents, group: asyncio.TaskGroup, followed: Any, node: Node) -> None:
        events.follow(group, {name: followed}, {name: node})

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        events = NodeEvents(StackName("s"), Ear())
        await follow(events, group, first, here)
        await first.began.wait()
        await follow(events, group, same, here.model_copy(update={"reserve_gib": 1.0}))
        await follow(events, group, other, here.model_copy(update={"host": "two"}))
        await first.ended.wait()
        await other.began.wait()
        assert not same.began.is_set()
        events.close()
