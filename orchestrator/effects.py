"""I/O: what the actions of a plan really do: shims, the model store, `routes.json` and the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os

from orchestrator.awaiting import Awaiter
from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.execute import EffectError, Report
from orchestrator.expand import Desired
from orchestrator.gateways import NO_HANDOVER, Gateways, Handover
from orchestrator.helpers.pull import pull
from orchestrator.launch import Launcher
from orchestrator.models.errors import StoreError
from orchestrator.models.node_store import NodeStore
from orchestrator.models.sync import ModelSync, Wish
from orchestrator.node.client import ShimError
from orchestrator.node.provision import provision
from orchestrator.plan import (
    AwaitReady,
    Drain,
    Provision,
    Publish,
    Pull,
    Reference,
    Rewire,
    Start,
    Stop,
    Sync,
    Unload,
    Withdraw,
)
from orchestrator.published import PublishedRoutes, Stamp
from orchestrator.readiness import client
from orchestrator.references import References
from orchestrator.snapshots import Files
from orchestrator.transport.base import TransportError
from orchestrator.unloading import unload_model
from schemas.base import NodeName, UnitId
from schemas.routes import Instance
from schemas.unit import slot_of

__all__ = ["RealEffects", "Stamp"]

POLL_S = 0.2
"""Between two looks at what the gateways have in flight."""


class RealEffects:
    """Does the actions of one plan. Owns `routes.json` while it does."""

    def __init__(
        self,
        cluster: Cluster,
        desired: Desired,
        stamp: Stamp,
        files: Files,
        *,
        is_routable: bool = True,
        handover: Handover = NO_HANDOVER,
    ) -> None:
        self._cluster = cluster
        self._desired = desired
        self._launcher = Launcher(cluster, desired, stamp, files)
        self._references = References(cluster)
        self._awaiter = Awaiter(cluster, desired, self._references)
        self._models = ModelSync(cluster.store)
        self._gateways = Gateways(cluster, desired, handover)
        follow = self._gateways.follow
        self._routes = PublishedRoutes(cluster, desired, stamp, files, follow=follow, is_there=is_routable)
        self._making_way: dict[UnitId, Instance] = {}
        """What was taken out of service for a successor, and still runs."""

    async def provision(self, action: Provision, report: Report) -> None:
        """Build the runtime environment of a node."""
        node = self._node(action.node)
        try:
            await provision(node.transport, await node.site(), report)
        except (TransportError, OSError) as error:
            raise EffectError(str(error)) from error

    async def pull(self, action: Pull, report: Report) -> None:
        """Ask a helper for a model."""
        helper = self._desired.helpers[action.helper]
        async with client() as http:
            await pull(http, action.helper, helper, action.model, report, os.environ)

    async def sync(self, action: Sync, report: Report) -> None:
        """Bring a model to its node; what is cut short leaves nothing half-installed and is resumed later."""
        node, wish = self._node(action.node), Wish(action.model, action.form)
        try:
            if node.is_local:
                await self._models.install(wish, report)
            else:
                site = await node.site()
                await self._models.bring(NodeStore(node.transport, site.python, site.cache), wish, report)
        except (StoreError, TransportError, OSError) as error:
            raise EffectError(str(error)) from error

    async def reference(self, action: Reference, report: Report) -> None:
        """Have one process answer the canary's prompts; what is kept is not made again."""
        await self._references.make(self._node(action.node), action.model, action.long_tokens, report)

    async def start(self, action: Start) -> None:
        """Start a unit, or all ranks of a group or none; what is alive already is left alone."""
        try:
            await self._launcher.start(action)
            self._gateways.started(action.first.unit.id)
        except EffectError:
            await self._give_up(action.first.unit.id)
            raise

    async def await_ready(self, action: AwaitReady, report: Report) -> None:
        """Wait for a worker's first token, or for a gateway that serves; its end or the time limit is a failure."""
        try:
            await self._awaiter.until_ready(action, report)
        except EffectError:
            await self._give_up(action.unit)
            raise

    async def publish(self, action: Publish) -> None:
        """Put an instance into the routes."""
        await self._routes.publish(action.instance)

    async def withdraw(self, action: Withdraw) -> None:
        """Take a unit out of the routes."""
        await self._routes.remove(action.unit)

    async def drain(self, action: Drain) -> None:
        """Send an instance no new requests and wait until no gateway has anything in flight there."""
        entry = await self._routes.entry(action.unit)
        if entry is not None and action.is_replaced:  # noted before it is written, which may be cut short
            self._making_way[action.unit] = entry
        await self._routes.retire(action.unit, is_replaced=action.is_replaced)
        if entry is None or action.drain_s <= 0:
            return
        try:
            async with asyncio.timeout(action.drain_s):
                while await self._gateways.in_flight(entry.url) != 0:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return  # the limit is the promise: what is still in flight ends with an error event

    async def stop(self, action: Stop) -> None:
        """End a unit and take it out of the routes, where no successor is on its way there."""
        try:
            with self._gateways.ending(action.unit):
                await self._node(action.node).shim.stop(self._cluster.stack, action.unit, grace_s=action.grace_s)
        except (ShimError, TransportError) as error:
            raise EffectError(f"{action.unit} could not be stopped: {error}") from error
        self._making_way.pop(action.unit, None)
        entry = await self._routes.entry(action.unit)
        if entry is not None and entry.state != "replacing":
            await self._routes.remove(action.unit)

    async def unload(self, action: Unload) -> None:
        """Have a worker drop its idle model; one that came into use keeps it, and what waits for it is not started."""
        token = self._cluster.directories.known_worker_token(self._cluster.stack)
        async with self._node(action.node).http() as http:
            kept = await unload_model(http, action.url, token)
        if kept is not None:
            slot = slot_of(action.unit)
            raise EffectError(f"{slot} keeps its model: {kept}", next_step=("status", self._cluster.stack))

    async def rewire(self, _action: Rewire) -> None:
        """Write this apply's overrides for the gateway, and make a running one read everything now."""
        served = await self._routes.change(lambda entries: entries)
        if served is not None and not served.is_current:
            problems = tuple(str(problem) for problem in served.problems)
            raise EffectError("the gateway cannot use the files and keeps its last good routes", log_tail=problems)

    async def settle(self, *, is_followed: bool = False) -> None:
        """After the last action: let no request wait for a successor that did not come.

        What was to make way for one and was not stopped serves again. `is_followed`: another apply goes on at once, and
        what waits is for it to serve, or to give up. The gateway reads its files once more: one that was just started
        had read them before it could be told.
        """
        for entry in self._making_way.values():
            await self._routes.publish(entry)
        if not is_followed:
            await self._routes.forget_replaced()
        await self._routes.mark_drained()
        await self._gateways.follow()

    # -- internals -------------------------------------------------------------------------------------------------

    async def _give_up(self, unit: UnitId) -> None:
        """Take out what waits in the routes for a unit that did not come about; its failure is what is told."""
        with contextlib.suppress(EffectError):
            await self._routes.forget_replaced(slot_of(unit))

    def _node(self, name: NodeName) -> ReachedNode:
        return self._cluster.nodes[name]
