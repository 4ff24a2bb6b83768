"""I/O: hears what may change what a stack needs: files, units on its nodes, nodes that come back, waiting commands.

Nothing depends on hearing everything: what is missed is seen at the next look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Protocol

from orchestrator.cluster import ReachedNode
from orchestrator.node.client import ShimError
from orchestrator.transport.base import TransportError
from schemas.base import NodeName, StackName
from schemas.node import Node

FIRST_RECONNECT_S = 1.0
LONGEST_RECONNECT_S = 15.0
"""A node that comes back is heard of within this; a look may see it sooner."""
STEP_MS = 250
"""Between two looks at what the system has reported of a directory, which is what watching files costs when idle."""

Signature = tuple[tuple[str, int, int, int], ...]
Way = tuple[str, str | None, str | None] | None
"""How a node is reached: `reach`, `host` and `user`."""


class Listener(Protocol):
    """Who is told."""

    def files_changed(self) -> None:
        """Hear that configuration files, or what was applied of them, have changed."""
        ...

    def lock_wanted(self) -> None:
        """Hear that a command waits for the stack's lock."""
        ...

    def units_changed(self, gone: Set[str]) -> None:
        """Hear that units began or ended on a node; `gone` are those that ended, as far as they were known."""
        ...


async def follow_files(conf: Path, state: Path, wanted: Path, listener: Listener, end: asyncio.Event) -> None:
    """Tell of changes in a configuration directory and of a stack's journal, until cancelled.

    Set `end` before: its threads look at that, and a cancellation waits for them.
    """
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow(conf, listener.files_changed, end, suffix=".yaml", is_recursive=True))
        group.create_task(_follow(state, listener.files_changed, end, suffix=".jsonl", is_recursive=False))
        group.create_task(_follow(wanted.parent, listener.lock_wanted, end, suffix=wanted.name, is_recursive=False))


async def _follow(
    directory: Path, tell: Callable[[], None], end: asyncio.Event, *, suffix: str, is_recursive: bool
) -> None:
    from watchfiles import Change, awatch

    def concerns(_: Change, path: str) -> bool:
        return path.endswith(suffix)

    while True:
        with contextlib.suppress(
            OSError, RuntimeError
        ):  # a directory that is missing, or a system without room for more
            async for _ in awatch(
                directory,
                watch_filter=concerns,
                debounce=2 * STEP_MS,
                step=STEP_MS,
                rust_timeout=60_000,
                stop_event=end,
                recursive=is_recursive,
            ):
                tell()
        await asyncio.sleep(LONGEST_RECONNECT_S)


def signature(directory: Path, pattern: str = "*.yaml") -> Signature:
    """Return what differs when one of a directory's files does; symbolic links are followed."""
    found = []
    for path in sorted(directory.rglob(pattern)):
        try:
            state = path.stat()
        except OSError:
            found.append((str(path), 0, 0, 0))
        else:
            found.append((str(path), state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)


def _way(node: Node | None) -> Way:
    return None if node is None else (node.reach, node.host, node.user)


class NodeEvents:
    """Follows the units of a stack on its nodes; one connection to each, opened again when it breaks."""

    def __init__(self, stack: StackName, listener: Listener) -> None:
        self._stack = stack
        self._listener = listener
        self._tasks: dict[NodeName, asyncio.Task[None]] = {}
        self._ways: Mapping[NodeName, Way] = {}
        """How each node that is followed is reached."""

    def follow(
        self, group: asyncio.TaskGroup, nodes: Mapping[NodeName, ReachedNode], declared: Mapping[NodeName, Node]
    ) -> None:
        """Follow these nodes and no others; `declared` says how they are reached.

        Those that are followed already, and are reached as before, keep their connection.
        """
        ways = {name: _way(declared.get(name)) for name in nodes}
        for name in [name for name in self._tasks if ways.get(name) != self._ways[name]]:
            self._tasks.pop(name).cancel()
        for name, node in nodes.items():
            if name not in self._tasks:
                self._tasks[name] = group.create_task(self._follow(node))
        self._ways = ways

    def close(self) -> None:
        """End all connections."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _follow(self, node: ReachedNode) -> None:
        known: Mapping[str, str] | None = None
        retry_s = FIRST_RECONNECT_S
        while True:
            is_new = True
            with contextlib.suppress(TransportError, ShimError):  # the look, which asks the node too, tells why
                async with node.shim.watch(self._stack) as changes:
                    async for alive in changes:
                        if known is not None and (is_new or alive != known):
                            self._listener.units_changed({u for u, launch in known.items() if alive.get(u) != launch})
                        known, is_new, retry_s = alive, False, FIRST_RECONNECT_S
            if not is_new:
                self._listener.units_changed(set())  # the connection ended: what lives there now is unknown
            await asyncio.sleep(retry_s)
            retry_s = min(LONGEST_RECONNECT_S, 2 * retry_s)
