"""I/O: one stack from its files to its units: compose, observe, plan, apply. What the commands call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import Cluster, reach
from orchestrator.collect import collect, read_routes
from orchestrator.directories import Directories
from orchestrator.effects import RealEffects, Stamp
from orchestrator.execute import Emit, Outcome, execute
from orchestrator.expand import Desired, expand, nothing
from orchestrator.journal import Generation, GitStamp, Journal, actor, git_stamp
from orchestrator.node.client import ShimError
from orchestrator.observed import Observed
from orchestrator.plan import Plan
from orchestrator.reconcile import reconcile
from orchestrator.transport.base import TransportError
from schemas.base import NodeName, StackName
from schemas.compose import Composition, compose
from schemas.node import Node
from schemas.problems import ConfigurationError, Problem

_THIS_MACHINE = {NodeName("local"): Node(reach="local")}


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with everything that it was made from."""

    plan: Plan
    desired: Desired
    observed: Observed
    cluster: Cluster
    git: GitStamp
    generation: int
    """The number that applying it gets."""

    def heading(self) -> str:
        """Return the first line of the plan's text."""
        name = f"Stack {self.plan.stack} at {self.git}"
        return name if self.plan.is_empty else f"{name} -> generation {self.generation}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A stack as it runs, whether or not its files are good."""

    observed: Observed
    plan: Plan | None
    """What apply would do; None while the files cannot be used."""
    problems: tuple[Problem, ...]
    """What is wrong with the files."""


class Controller:
    """One stack of one configuration directory."""

    def __init__(self, conf: Path, stack: str, overrides: tuple[str, ...], directories: Directories) -> None:
        self.conf = conf.resolve() if ".." in conf.parts else conf.absolute()
        self.stack = StackName(stack)
        self.overrides = overrides
        self.directories = directories
        self.journal = Journal(directories.stack(self.stack))

    def has_file(self) -> bool:
        """Tell whether the configuration directory has a stack of this name."""
        return (self.conf / "stacks" / f"{self.stack}.yaml").is_file()

    def compose(self) -> Composition:
        """Return the composed stack; raises `ConfigurationError`."""
        return compose(self.conf, self.stack, self.overrides)

    async def plan(self) -> Planned:
        """Compose, look and plan; nothing is changed."""
        composition = self.compose()
        desired = expand(composition.stack, str(self.conf), self.overrides)
        return await self._planned(desired)

    async def plan_down(self) -> Planned:
        """Plan the end of everything that runs of this stack. Works with bad files too, from the nodes last applied."""
        try:
            nodes = dict(self.compose().stack.nodes)
        except ConfigurationError:
            if not self.directories.stack(self.stack).is_dir():
                raise
            nodes = self._last_nodes()
        return await self._planned(nothing(self.stack, str(self.conf), nodes))

    async def look(self) -> Seen:
        """Return what runs, and what applying it again would change; bad files are part of the answer.

        The files are composed with the overrides that were applied: what they made is not a change.
        """
        routes = read_routes(self.directories.routes(self.stack))
        overrides = routes.overrides if routes is not None else ()
        try:
            planned = await Controller(self.conf, self.stack, overrides, self.directories).plan()
        except ConfigurationError as error:
            if not self.directories.stack(self.stack).is_dir():
                raise
            nodes = self._last_nodes()
            cluster = reach(self.stack, nodes, self.directories)
            observed = await collect(cluster, nothing(self.stack, str(self.conf), nodes))
            return Seen(observed, None, error.problems)
        return Seen(planned.observed, planned.plan, ())

    def cluster(self) -> Cluster:
        """Return the way to the nodes, also while the files are bad."""
        try:
            nodes = dict(self.compose().stack.nodes)
        except ConfigurationError:
            nodes = self._last_nodes()
        return reach(self.stack, nodes, self.directories)

    @asynccontextmanager
    async def lock(self, command: str) -> AsyncIterator[None]:
        """Hold the stack's lock while the context lasts; raises `LockedError` with the holder's words."""
        holder = {"actor": actor(), "pid": os.getpid(), "command": command, "since": time.time()}
        node = next(iter(reach(self.stack, _THIS_MACHINE, self.directories).nodes.values()))
        async with node.shim.lock(f"apply-{self.stack}", holder):
            yield

    async def apply(self, planned: Planned, emit: Emit) -> Outcome:
        """Execute a plan and record its generation, however it ends."""
        if planned.desired.units:
            self.journal.remember_nodes(planned.desired.nodes)
        stamp = Stamp(planned.generation, planned.git.short)
        outcome: Outcome | None = None
        try:
            outcome = await execute(planned.plan, RealEffects(planned.cluster, planned.desired, stamp), emit)
        finally:
            self._record(planned, outcome)
        if outcome.is_complete and planned.desired.units:
            await self._collect_garbage(planned)
        return outcome

    def _last_nodes(self) -> dict[NodeName, Node]:
        """Return where to look while the files are bad: the nodes last applied, else this machine."""
        return self.journal.remembered_nodes() or _THIS_MACHINE

    async def _planned(self, desired: Desired) -> Planned:
        cluster = reach(self.stack, desired.nodes, self.directories)
        observed = await collect(cluster, desired)
        plan = reconcile(desired, observed)
        git = await asyncio.to_thread(git_stamp, self.conf)
        return Planned(plan, desired, observed, cluster, git, self.journal.last_generation() + 1)

    def _record(self, planned: Planned, outcome: Outcome | None) -> None:
        words = "interrupted" if outcome is None else "applied" if outcome.is_complete else "partly applied"
        self.journal.record(
            Generation(
                generation=planned.generation,
                revision=planned.git.revision,
                is_dirty=planned.git.is_dirty,
                overrides=self.overrides,
                owner=str(self.conf),
                actor=actor(),
                at=time.time(),
                changes=tuple(f"{c.verb} {c.target}: {c.cause}" for c in planned.plan.changes),
                outcome=words,
            )
        )

    async def _collect_garbage(self, planned: Planned) -> None:
        """Remove what ended units left behind; the wanted ones keep their logs across restarts."""
        keep = {unit.id for unit in planned.desired.units.values()}
        for node in planned.cluster.nodes.values():
            try:
                await node.shim.gc(self.stack, keep)
            except (ShimError, TransportError):
                continue  # the next apply removes it
