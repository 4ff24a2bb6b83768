"""I/O: the one writer of a stack's `routes.json` while a plan is executed, on the node of its gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.cluster import Cluster
from orchestrator.delivery import deliver
from orchestrator.execute import EffectError
from orchestrator.expand import Desired
from orchestrator.snapshots import Files
from orchestrator.transport.base import NodeTransport, TransportError
from schemas.admin import ConfigReport
from schemas.base import SlotId, UnitId
from schemas.routes import Instance, Routes
from schemas.unit import slot_of

READ_TIMEOUT_S = 20.0

Entries = Mapping[UnitId, Instance]
Follow = Callable[[], Awaitable[ConfigReport | None]]
"""Makes the gateway read its files, and returns what it serves then; None where none answers."""


async def nobody_follows() -> None:
    """Follow routes that no gateway reads yet."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an apply writes beside everything it changes."""

    generation: int
    revision: str | None


async def read_routes(transport: NodeTransport, path: str) -> Routes | None:
    """Return the published routes; None where there are none or they cannot be read. Raises `TransportError`."""
    seen = await transport.read(path, timeout_s=READ_TIMEOUT_S)
    try:
        return Routes.from_json(seen) if seen is not None else None
    except ValidationError:
        return None


class PublishedRoutes:
    """The routes of one stack. The lock of the stack keeps other writers away, so they are read once.

    What was written is served: every change ends when the gateway has read it.
    """

    def __init__(
        self,
        cluster: Cluster,
        desired: Desired,
        stamp: Stamp,
        files: Files,
        *,
        follow: Follow = nobody_follows,
        is_there: bool = True,
    ) -> None:
        """`is_there`: whether the gateway's node answered; there are no routes on one that is lost."""
        self._follow = follow
        self._cluster = cluster
        self._node = cluster.gateway_node
        self._desired = desired
        self._stamp = stamp
        self._files = files
        self._is_there = is_there
        self._conf: str | None = None
        self._is_delivered = False
        self._entries: dict[UnitId, Instance] | None = None
        self._drained: tuple[str, ...] = ()
        """What the file says, once it was read."""
        self._lock = asyncio.Lock()

    async def entry(self, unit: UnitId) -> Instance | None:
        """Return what the routes say of a unit."""
        async with self._lock:
            return (await self._read()).get(unit)

    async def publish(self, instance: Instance) -> None:
        """Put an instance in, in the place of those that it replaces."""
        slot = slot_of(instance.unit)
        await self.change(lambda entries: {**_without_replaced(entries, slot), instance.unit: instance})

    async def retire(self, unit: UnitId, *, is_replaced: bool) -> Instance | None:
        """Send an instance no new requests; returns its entry, None where it has none.

        `is_replaced`: requests may be held until its successor is published.
        """
        old = await self.entry(unit)
        if old is not None:
            new = old.model_copy(update={"state": "replacing" if is_replaced else "draining"})
            await self.change(lambda entries: {**entries, unit: new})
        return old

    async def remove(self, unit: UnitId) -> None:
        """Take a unit out, whatever its state."""
        if await self.entry(unit) is not None:
            await self.change(lambda entries: {key: entry for key, entry in entries.items() if key != unit})

    async def forget_replaced(self, slot: SlotId | None = None) -> None:
        """Take out what waits for a successor that does not come: in one slot, or everywhere."""
        async with self._lock:
            entries = await self._read()
        if len(_without_replaced(entries, slot)) < len(entries):
            await self.change(lambda entries: _without_replaced(entries, slot))

    async def mark_drained(self) -> None:
        """Write which names are drained, where the file says something else."""
        async with self._lock:
            await self._read()
        if self._drained != self._desired.drained:
            await self.change(lambda entries: entries)

    async def change(self, change: Callable[[Entries], Entries]) -> ConfigReport | None:
        """Write what `change` makes of the entries, and bring the gateway the files; raises `EffectError`.

        Returns what the gateway serves then; None where none answers. It sees each change by itself: to entries that
        are written again as they were it gives a new start.
        """
        async with self._lock:
            entries = dict(change(await self._read()))
            conf = await self._conf_there()
            routes = Routes(
                stack=self._desired.stack,
                generation=self._stamp.generation,
                revision=self._stamp.revision,
                overrides=self._desired.overrides,
                conf=conf,
                instances=tuple(entries[unit] for unit in sorted(entries)),
                drained=self._desired.drained,
            )
            try:
                path = await self._cluster.routes_path()
                await _to_its_end(self._node.transport.push(routes.to_json().encode(), path, mode=0o600))
            except TransportError as error:
                raise EffectError(f"routes.json could not be written: {error}") from error
            except asyncio.CancelledError:
                self._entries = None  # what the file says is read again
                raise
            self._entries, self._drained = entries, routes.drained
            return await self._follow()

    async def _conf_there(self) -> str | None:
        """Return the directory that the gateway is to compose instead of its own."""
        if self._node.is_local:
            return self._desired.files
        if self._files and not self._is_delivered:
            try:
                self._conf = await deliver(self._node, self._cluster.stack, self._files)
            except TransportError as error:
                raise EffectError(f"the files could not be brought to the gateway: {error}") from error
            self._is_delivered = True
        return self._conf

    async def _read(self) -> dict[UnitId, Instance]:
        if self._entries is None and not self._is_there:
            self._entries, self._drained = {}, self._desired.drained
        if self._entries is None:
            try:
                routes = await read_routes(self._node.transport, await self._cluster.routes_path())
            except TransportError as error:
                raise EffectError(f"routes.json could not be read: {error}") from error
            self._entries = {entry.unit: entry for entry in routes.instances} if routes is not None else {}
            self._conf = routes.conf if routes is not None else None
            self._drained = routes.drained if routes is not None else ()
        return self._entries


async def _to_its_end(writing: Coroutine[Any, Any, None]) -> None:
    """Wait for it, also when cancelled meanwhile: what was cut short might be written after what comes next."""
    task = asyncio.ensure_future(writing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it is ours: the writing was given up
        raise


def _without_replaced(entries: Entries, slot: SlotId | None) -> dict[UnitId, Instance]:
    """Return the entries without those in state `replacing`, of one slot or of all."""
    return {
        unit: entry
        for unit, entry in entries.items()
        if entry.state != "replacing" or (slot is not None and slot_of(unit) != slot)
    }
