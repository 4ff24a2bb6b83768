"""I/O: the models of a stack in the stores of all its nodes: look, fetch, send, check, remove."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.engines import EngineError
from orchestrator.execute import ActionDone, ActionFailed, ActionProgress, ActionStarted, EffectError, Emit, Report
from orchestrator.models.errors import StoreError
from orchestrator.models.node_store import Listing, NodeStore, StoredModel, fits
from orchestrator.models.sources import PathSource, parse_source
from orchestrator.models.store import InstalledModel
from orchestrator.models.sync import ModelSync, asked_paths, models_here
from orchestrator.models.wishes import Need, Wish, wishes_of
from orchestrator.node.client import ShimError
from orchestrator.plan import ActionId, Sync
from orchestrator.records import observed_unit
from orchestrator.transport.base import TransportError
from schemas.base import NodeName, StackName, UnitId
from schemas.unit import AnyUnitSpec

HERE = NodeName("this-machine")
"""How the store that models are sent from is called where nodes are listed."""

T = TypeVar("T")
Failure = StoreError | TransportError | ShimError


@dataclass(frozen=True, slots=True)
class Use:
    """A living unit that has loaded a model."""

    stack: StackName
    unit: UnitId
    wish: Wish


@dataclass(frozen=True, slots=True)
class NodeModels:
    """What a node has in its store, and who uses it."""

    store: NodeStore
    listing: Listing
    uses: tuple[Use, ...]

    def users(self, model: StoredModel) -> tuple[Use, ...]:
        """Return the units that may have loaded this very entry."""
        return tuple(use for use in self.uses if fits(model, use.wish.model, use.wish.form))


@dataclass(frozen=True, slots=True)
class Checked:
    """How one model of one node stood up to its checksums; `damaged` is None where the model is not there."""

    node: NodeName
    wish: Wish
    model: StoredModel | None
    damaged: tuple[str, ...] | None


async def look(
    nodes: Mapping[NodeName, ReachedNode], wishes: Sequence[Wish]
) -> Mapping[NodeName, NodeModels | Failure]:
    """Ask every node at once; one that cannot be asked is in the answer with the reason."""

    async def ask(name: NodeName, node: ReachedNode) -> NodeModels:
        site = await node.site()
        store = NodeStore(node.transport, site.python, site.cache)
        listing = await store.listing(asked_paths(wishes))
        report = await node.shim.report(None)
        living = [(unit, observed_unit(name, unit, report.node.time).spec) for unit in report.units if unit.alive]
        uses = [Use(StackName(unit.stack), UnitId(unit.unit), wish) for unit, spec in living for wish in _wishes(spec)]
        return NodeModels(store, listing, tuple(uses))

    return await _each({name: ask(name, node) for name, node in nodes.items()})


async def bring_all(
    cluster: Cluster, sync: ModelSync, jobs: Sequence[tuple[NodeName, Wish]], emit: Emit, *, update: bool = False
) -> int:
    """Bring models to nodes, `HERE` among them, side by side; return how many could not be brought."""
    failed = 0

    async def bring(name: NodeName, wish: Wish) -> None:
        nonlocal failed
        identity = ActionId(f"sync {name}/{wish.model.name} ({wish.form})")
        action = Sync(id=identity, node=name, cause="", model=wish.model, form=wish.form)
        emit(ActionStarted(action))
        began = time.monotonic()
        try:
            await _bring(cluster, sync, name, wish, lambda done: emit(ActionProgress(action, done)), update=update)
        except (StoreError, TransportError) as error:
            failed += 1
            emit(ActionFailed(action, EffectError(str(error))))
        else:
            emit(ActionDone(action, time.monotonic() - began))

    async with asyncio.TaskGroup() as group:
        for name, wish in jobs:
            group.create_task(bring(name, wish))
    return failed


async def _bring(
    cluster: Cluster, sync: ModelSync, name: NodeName, wish: Wish, report: Report, *, update: bool
) -> None:
    if name == HERE or cluster.nodes[name].is_local:
        await sync.install(wish, report, update=update)
        return
    site = await cluster.nodes[name].site()
    await sync.bring(NodeStore(cluster.nodes[name].transport, site.python, site.cache), wish, report)


async def verify_all(
    cluster: Cluster,
    seen: Mapping[NodeName, NodeModels | Failure],
    needs: Sequence[Need],
    report: Callable[[NodeName, int, int], None],
) -> tuple[Checked, ...]:
    """Read every byte of the needed models on the nodes that answered; `report` has node, bytes done and in all.

    Models that users look after themselves have no checksums and are left out. Raises what a node fails with.
    """
    here = await asyncio.to_thread(models_here, cluster.store, [need.wish for need in needs])

    async def check(name: NodeName, node: NodeModels) -> tuple[Checked, ...]:
        wanted = [need.wish for need in needs if name in need.nodes]
        found = [
            (wish, stored(node.listing, wish, here.get(wish)) or _torn(node.listing, wish))
            for wish in wanted
            if not isinstance(parse_source(wish.model.source), PathSource)
        ]
        there = {f"{model.slug}/{model.entry}": model for _, model in found if model is not None}
        damaged = await node.store.verify(tuple(there.values()), lambda done, total: report(name, done, total))
        return tuple(
            Checked(name, wish, model, None if model is None else damaged[f"{model.slug}/{model.entry}"])
            for wish, model in found
        )

    reached = {name: node for name, node in seen.items() if isinstance(node, NodeModels)}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check(name, node)) for name, node in reached.items()]
    return tuple(checked for task in tasks for checked in task.result())


def stored(listing: Listing, wish: Wish, here: InstalledModel | None = None) -> StoredModel | None:
    """Return the entry of a store that a unit with this wish would load."""
    loadable = listing.find(wish.model, wish.form, here)
    return next((model for model in listing.models if model.loadable == loadable), None)


def _torn(listing: Listing, wish: Wish) -> StoredModel | None:
    """Return the latest entry of a model that is not whole."""
    found = [model for model in listing.models if fits(model, wish.model, wish.form)]
    return max(found, key=lambda model: model.manifest.installed_at, default=None)


def _wishes(spec: AnyUnitSpec | None) -> tuple[Wish, ...]:
    try:
        return wishes_of(spec)
    except EngineError:  # the record of another version
        return ()


async def _each(asked: Mapping[NodeName, Awaitable[T]]) -> dict[NodeName, T | Failure]:
    async def guarded(work: Awaitable[T]) -> T | Failure:
        try:
            return await work
        except (StoreError, TransportError, ShimError) as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(guarded(work)) for name, work in asked.items()}
    return {name: task.result() for name, task in tasks.items()}
