"""I/O: the locks that keep the commands on one stack apart, on this machine and on its gateway's node."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from orchestrator.cluster import ReachedNode, reach
from orchestrator.directories import Directories
from orchestrator.journal import actor
from orchestrator.node.client import LockedError
from orchestrator.transport.base import NodeUnreachableError
from schemas.base import NodeName, StackName
from schemas.node import Node

THIS_MACHINE = {NodeName("local"): Node(reach="local")}
LOCK_POLL_S = 0.5
"""Between two tries to take the lock from a watcher, which gives it up between two passes."""

FindNode = Callable[[], Awaitable[ReachedNode | None]]


class StackLocks:
    """The locks of one stack. They are held through living connections and vanish with their holder."""

    def __init__(self, stack: StackName, directories: Directories, gateway_elsewhere: FindNode) -> None:
        """`gateway_elsewhere` finds the gateway's node, where that is another machine whose lock is needed too."""
        self._stack = stack
        self._directories = directories
        self._gateway_elsewhere = gateway_elsewhere

    @asynccontextmanager
    async def changing(self, command: str, *, yields: bool, waits: Callable[[str], None]) -> AsyncIterator[None]:
        """Be who changes the stack while the context lasts; see `Controller.lock`."""
        holder = {**_holder(command), "yields": yields}
        async with AsyncExitStack() as held:
            await self._take_here(held, holder, waits)
            gateway = await self._gateway_elsewhere()
            if gateway is not None:  # so that commands on two machines exclude each other
                try:
                    await held.enter_async_context(gateway.shim.lock(f"apply-{self._stack}", holder))
                except NodeUnreachableError as error:
                    raise _without_its_lock(self._stack, error) from error
            yield

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Be the stack's only watcher while the context lasts; raises `LockedError` with the other's words."""
        async with self._here().shim.lock(f"watch-{self._stack}", _holder(f"watch {self._stack}")):
            yield

    async def _take_here(self, held: AsyncExitStack, holder: dict[str, Any], waits: Callable[[str], None]) -> None:
        node, is_told = self._here(), False
        while True:
            try:
                await held.enter_async_context(node.shim.lock(f"apply-{self._stack}", holder))
            except LockedError as error:
                if holder["yields"] or not error.holder.get("yields"):
                    raise
                if not is_told:
                    waits(f"Waiting for {error.holder.get('command')} (pid {error.holder.get('pid')}) ...")
                    is_told = True
                self._directories.wanted(self._stack).touch()
                await asyncio.sleep(LOCK_POLL_S)
            else:
                return

    def _here(self) -> ReachedNode:
        return next(iter(reach(self._stack, THIS_MACHINE, self._directories).nodes.values()))


def _holder(command: str) -> dict[str, Any]:
    return {"actor": actor(), "pid": os.getpid(), "command": command, "since": time.time()}


def _without_its_lock(stack: StackName, error: NodeUnreachableError) -> NodeUnreachableError:
    """Say why nothing goes on without the gateway's node, and the way out."""
    reason = str(error).removeprefix(f"{error.node}: ")
    return NodeUnreachableError(
        error.node,
        f"{reason}\nThe gateway is there, and with it the lock that keeps other machines from changing the stack too. "
        f"Nothing was changed. Where the node is gone for good: orchestrate apply {stack} --assume-lost {error.node}",
    )
