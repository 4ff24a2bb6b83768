"""I/O: one stack from its files to its units: compose, observe, plan, apply. What the commands call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from orchestrator.allotting import allot, forget
from orchestrator.cluster import Cluster, ReachedNode, reach
from orchestrator.collect import Note, collect, with_worker_status
from orchestrator.delivery import deliver_keys, is_delivered
from orchestrator.directories import Directories
from orchestrator.effects import RealEffects, Stamp
from orchestrator.execute import ActionFailed, EffectError, Emit, Event, Outcome, execute
from orchestrator.expand import Desired, expand, nothing
from orchestrator.gateways import Gateways, handover_of
from orchestrator.installed import InstalledMemory
from orchestrator.journal import Journal, actor
from orchestrator.keys import KeysAt
from orchestrator.locks import THIS_MACHINE, StackLocks
from orchestrator.node.client import ShimError
from orchestrator.node.provision import prune
from orchestrator.observed import Reachable
from orchestrator.planned import Planned, Seen, Wanted, generation_of, still_looked_at
from orchestrator.policy import SILENT_LIMIT_S, PlanPolicy
from orchestrator.reconcile import EVERYTHING, reconcile
from orchestrator.revisions import git_stamp
from orchestrator.rollback import RollbackError, compose_recovered, forget_old, recover
from orchestrator.snapshots import Snapshots, read_files
from orchestrator.transport.base import TransportError
from orchestrator.uncollected import uncollected
from schemas.base import NodeName, StackName
from schemas.compose import Composition, compose, shown_path
from schemas.node import Node
from schemas.problems import ConfigurationError
from schemas.stack import KeysFile, Stack
from schemas.unit import GatewaySpec

SETTLE_S = 30.0
"""What putting the routes in order may take after the last action."""


class Controller:
    """One stack of one configuration directory."""

    def __init__(
        self,
        conf: Path,
        stack: str,
        overrides: tuple[str, ...],
        directories: Directories,
        policy: PlanPolicy = EVERYTHING,
        note: Note = lambda _: None,
    ) -> None:
        self.conf = conf.resolve() if ".." in conf.parts else conf.absolute()
        self.stack = StackName(stack)
        self.overrides = overrides
        self.directories = directories
        self.policy = policy
        self.note = note
        """Is told what a person has to wait for."""
        self.journal = Journal(directories.stack(self.stack))
        self.snapshots = Snapshots(directories.stack(self.stack))
        self._locks = StackLocks(self.stack, directories, self._gateway_elsewhere)

    def has_file(self) -> bool:
        """Tell whether the configuration directory has a stack of this name."""
        return (self.conf / "stacks" / f"{self.stack}.yaml").is_file()

    def compose(self) -> Composition:
        """Return the composed stack, whose keys file can be read; raises `ConfigurationError`."""
        found = compose(self.conf, self.stack, self.overrides)
        auth = found.stack.gateway.auth
        if isinstance(auth, KeysFile):
            KeysAt(self.conf, auth.keys_file).read()
        return found

    async def plan(self) -> Planned:
        """Compose, look and plan; nothing is changed."""
        return await self.plan_of(await self.wanted())

    async def plan_rollback(self, number: int) -> Planned:
        """Plan the return to the files and overrides of an earlier generation, which are put into a place of their own.

        Raises `RollbackError` where they are not known, and `ConfigurationError` where they are no longer valid.
        """
        return await self.plan_of(await self._wanted_again(number))

    async def wanted(self) -> Wanted:
        """Compose the files as they are now; raises `ConfigurationError`."""
        return await asyncio.to_thread(self._wanted)

    async def wanted_as_applied(self) -> Wanted:
        """Compose what an apply has left in force: the files of a rollback, else the files as they are now.

        With the overrides of that apply. Raises `ConfigurationError` for files that cannot be used.
        """
        last = next(self.journal.latest(), None)
        if last is None:
            return await self.wanted()
        if last.is_rollback:
            return await self._wanted_again(last.generation)
        return await self._with_overrides(last.overrides).wanted()

    async def wanted_last(self) -> Wanted | None:
        """Compose the files kept of the last apply; None where nothing was applied, or they cannot be used."""
        last = next(self.journal.latest(), None)
        try:
            found = await self._wanted_again(last.generation) if last is not None else None
        except (RollbackError, ConfigurationError):
            return None
        if found is None or last is None or last.is_rollback:
            return found
        return replace(found, desired=replace(found.desired, files=None), back_to=None)

    async def plan_down(self) -> Planned:
        """Plan the end of everything that runs of this stack. Works with bad files too, from the nodes last applied."""
        try:
            nodes = dict(self.compose().stack.nodes)
        except ConfigurationError:
            if not self.directories.stack(self.stack).is_dir():
                raise
            nodes = self._last_nodes()
        nodes = {**self.journal.remembered_nodes(), **nodes}
        git = await asyncio.to_thread(git_stamp, self.conf)
        return await self.plan_of(Wanted(nothing(self.stack, str(self.conf), nodes), git))

    async def look(self) -> Seen:
        """Return what runs, and what applying it again would change; bad files are part of the answer.

        The files are composed with the overrides that were applied: what they made is not a change.
        """
        last = next(self.journal.latest(), None)
        overrides = last.overrides if last is not None else ()
        rolled_back = last if last is not None and last.is_rollback else None
        try:
            control = self._with_overrides(overrides)
            planned = await control.plan_of(await control.wanted(), patience_s=0.0)
            keys_file = planned.desired.keys_file
            has_keys = keys_file is None or bool((await asyncio.to_thread(KeysAt(self.conf, keys_file).read)).keys)
        except ConfigurationError as error:
            if not self.directories.stack(self.stack).is_dir():
                raise
            nodes = self._last_nodes()
            cluster = self._reach(nodes)
            observed = await collect(cluster, nothing(self.stack, str(self.conf), nodes))
            return Seen(await with_worker_status(cluster, observed), None, error.problems, rolled_back)
        observed = await with_worker_status(planned.cluster, planned.observed)
        return Seen(observed, planned.plan, (), rolled_back, has_keys=has_keys)

    def _with_overrides(self, overrides: tuple[str, ...]) -> Controller:
        return Controller(self.conf, self.stack, overrides, self.directories, self.policy, self.note)

    def cluster(self) -> Cluster:
        """Return the way to the nodes that are looked at, also to those that left the files or while these are bad."""
        last = next(self.journal.latest(), None)
        overrides = self.overrides or (last.overrides if last is not None else ())
        try:
            nodes = dict(self._with_overrides(overrides).compose().stack.nodes)
        except ConfigurationError:
            nodes = self._last_nodes()
        return self._reach({**self.journal.remembered_nodes(), **nodes})

    def lock(
        self, command: str, *, yields: bool = False, waits: Callable[[str], None] = lambda _: None
    ) -> AbstractAsyncContextManager[None]:
        """Hold the stack's lock while the context lasts; raises `LockedError` with the holder's words.

        `yields`: the holder is a watcher, whose passes are short and can be done again. A command waits for it, after
        `waits` was called with its words; a watcher waits for nobody. Raises `NodeUnreachableError` where the gateway's
        node, whose lock keeps other machines away, does not answer and is not assumed to be lost.
        """
        return self._locks.changing(command, yields=yields, waits=waits)

    def only_watcher(self) -> AbstractAsyncContextManager[None]:
        """Be the stack's only watcher while the context lasts; raises `LockedError` with the other's words."""
        return self._locks.watching()

    async def apply(
        self,
        planned: Planned,
        emit: Emit,
        command: str = "apply",
        by: str | None = None,
        stop: asyncio.Event | None = None,
        is_followed: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Execute a plan and record its generation, however it ends.

        `command` is what the journal calls it, `by` who does it: the user where it is None. Once `stop` is set nothing
        more is begun. `is_followed` tells whether it was cut short for another apply that goes on with what it left.
        """
        who, began = by or actor(), time.time()
        failures: list[str] = []
        if planned.desired.units:
            self.journal.remember_nodes(planned.desired.nodes, planned.cluster.gateway)
            self.snapshots.keep(planned.files)
        stamp = Stamp(planned.generation, planned.git.short)
        cluster = planned.cluster.signed(who, planned.generation)

        def note(event: Event) -> None:
            if isinstance(event, ActionFailed):
                failures.append(f"{event.action.id}: {event.error}")
            emit(event)

        await self.deliver_keys(planned)
        outcome: Outcome | None = None
        is_routable = isinstance(planned.observed.nodes.get(cluster.gateway), Reachable)
        handover = handover_of(planned.plan)
        effects = RealEffects(
            cluster, planned.desired, stamp, planned.files, is_routable=is_routable, handover=handover
        )
        try:
            await allot(cluster, planned.desired, planned.observed)
            outcome = await execute(planned.plan, effects, note, stop)
        finally:
            try:
                await _settled(effects, is_followed=is_followed())
            finally:
                self._record(planned, outcome, command, who, began, tuple(failures))
        if outcome.is_complete:
            await forget(cluster, planned.desired, planned.observed)
        if outcome.is_complete and planned.desired.units:
            self.journal.remember_nodes(still_looked_at(planned, self.policy.assume_lost), planned.cluster.gateway)
            await self._collect_garbage(planned, cluster)
        return outcome

    async def allot(self, planned: Planned) -> None:
        """Tell the on-demand workers what they share, bring the gateway the keys, and have it read them.

        Where nothing else is to be done, that may still have changed.
        """
        await allot(planned.cluster, planned.desired, planned.observed)
        await self.deliver_keys(planned)
        if planned.observed.gateway is not None:
            await Gateways(planned.cluster, planned.desired).follow()

    async def deliver_keys(self, planned: Planned) -> None:
        """Bring the keys to a gateway on another machine; raises `TransportError` and `OSError`."""
        desired, node = planned.desired, planned.cluster.nodes.get(planned.cluster.gateway)
        is_seen = isinstance(planned.observed.nodes.get(planned.cluster.gateway), Reachable)
        if desired.keys_file is not None and node is not None and not node.is_local and is_seen:
            await deliver_keys(node, desired)

    def _last_nodes(self) -> dict[NodeName, Node]:
        """Return where to look while the files are bad: the nodes last applied, else this machine."""
        return self.journal.remembered_nodes() or THIS_MACHINE

    def _wanted(self) -> Wanted:
        composition = self.compose()
        names = [file.relative_to(shown_path(self.conf)).as_posix() for file in composition.files]
        files = read_files(self.conf, names)
        desired = replace(self._expand(composition.stack, self.overrides), notes=composition.notes)
        return Wanted(desired, git_stamp(self.conf), files)

    def _expand(self, stack: Stack, overrides: tuple[str, ...]) -> Desired:
        remembered, lost = self.journal.remembered_nodes(), self.policy.assume_lost
        with uncollected():
            return expand(stack, str(self.conf), overrides, remembered=remembered, lost=lost)

    async def _wanted_again(self, number: int) -> Wanted:
        def find() -> Wanted:
            recovered = recover(self.journal, self.snapshots, self.conf, number)
            stack = compose_recovered(recovered, self.conf, self.stack)
            desired = self._expand(stack, recovered.generation.overrides)
            if not recovered.is_current:
                desired = replace(desired, files=str(recovered.place))
            return Wanted(desired, recovered.generation.git, recovered.files, number)

        return await asyncio.to_thread(find)

    async def plan_of(
        self,
        wanted: Wanted,
        policy: PlanPolicy | None = None,
        *,
        patience_s: float = SILENT_LIMIT_S,
        installed: InstalledMemory | None = None,
    ) -> Planned:
        """Look, and plan what makes it so; `patience_s` and `installed` are those of `collect`."""
        desired = wanted.desired
        gateway = next((unit.node for unit in desired.units.values() if isinstance(unit.spec, GatewaySpec)), None)
        cluster = self._reach(desired.nodes, gateway)
        observed = await collect(cluster, desired, patience_s=patience_s, note=self.note, installed=installed)
        if not cluster.gateway_is_here and is_delivered(observed.routes, wanted.files):
            observed = replace(observed, routes=observed.routes.model_copy(update={"conf": desired.files}))
        if desired.units and observed.routes is not None:  # they outlive every apply; `down` ends them
            desired = replace(desired, drained=observed.routes.drained)
        if not wanted.is_current and observed.gateway is not None:  # that it cannot read them is no news
            observed = replace(observed, gateway=observed.gateway.model_copy(update={"is_current": True}))
        with uncollected():
            plan = reconcile(desired, observed, policy or self.policy)
        number = self.journal.last_generation() + 1
        return Planned(plan, desired, observed, cluster, wanted.git, number, wanted.files, wanted.back_to)

    def _reach(self, nodes: Mapping[NodeName, Node], gateway: NodeName | None = None) -> Cluster:
        return reach(self.stack, nodes, self.directories, gateway or self.journal.remembered_gateway())

    async def _gateway_elsewhere(self) -> ReachedNode | None:
        """Return the node with the gateway that runs, else with the one that is to run, where that is another machine.

        One that is assumed to be lost has no lock that anybody could hold.
        """
        nodes, gateways = self._last_nodes(), [self.journal.remembered_gateway()]
        with contextlib.suppress(ConfigurationError):
            stack = (await asyncio.to_thread(self.compose)).stack
            nodes, gateways = {**nodes, **stack.nodes}, [*gateways, stack.gateway.node]
        gateway = next((name for name in gateways if name is not None and name not in self.policy.assume_lost), None)
        node = self._reach(nodes, gateway).nodes.get(gateway) if gateway is not None else None
        return None if node is None or node.is_local else node

    def _record(
        self,
        planned: Planned,
        outcome: Outcome | None,
        command: str,
        who: str,
        began: float,
        failures: tuple[str, ...],
    ) -> None:
        self.journal.record(generation_of(planned, outcome, command, who, began, time.time(), failures))
        forget_old(self.journal, self.snapshots)

    async def _collect_garbage(self, planned: Planned, cluster: Cluster) -> None:
        """Remove what ended units left behind; the wanted ones keep their logs across restarts."""
        keep = {unit.id for unit in planned.desired.units.values()}

        async def collect_on(node: ReachedNode) -> None:
            with contextlib.suppress(ShimError, TransportError):  # the next apply removes it
                await node.shim.gc(self.stack, keep)
                if not node.is_local:
                    await prune(node.transport, await node.site())

        seen = [node for name, node in cluster.nodes.items() if isinstance(planned.observed.nodes.get(name), Reachable)]
        await asyncio.gather(*(collect_on(node) for node in seen))


async def _settled(effects: RealEffects, *, is_followed: bool) -> None:
    """Leave the routes in order; what cannot be done now is done by the next apply."""
    with contextlib.suppress(EffectError, TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await effects.settle(is_followed=is_followed)
