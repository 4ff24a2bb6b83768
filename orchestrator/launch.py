"""I/O: starts the processes of one `Start`: a unit, or all ranks of a group or none of them."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import zmq

from orchestrator import engines
from orchestrator.addresses import AddressError, bind_address, group_addresses, rdma_devices
from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.commands import (
    Demand,
    Meeting,
    control_environment,
    gateway_argv,
    gateway_environment,
    link_file,
    rank_environment,
    unit_environment,
    watcher_argv,
    watcher_environment,
    worker_argv,
)
from orchestrator.delivery import deliver, deliver_keys, referred_variables
from orchestrator.directories import Directories
from orchestrator.engines.find import find_program
from orchestrator.execute import EffectError
from orchestrator.expand import Desired
from orchestrator.models.errors import StoreError
from orchestrator.models.node_store import NodeStore
from orchestrator.models.sync import Wish, loadable_on, models_here
from orchestrator.models.wishes import wishes_of
from orchestrator.node.client import ShimError
from orchestrator.node.reports import UnitLaunch
from orchestrator.plan import Placed, Start
from orchestrator.published import Stamp
from orchestrator.reconcile import STOP_GRACE_S
from orchestrator.records import LAUNCH_LABEL, claimed_ports, unit_labels
from orchestrator.snapshots import Files
from orchestrator.transport.base import TransportError
from schemas.unit import EngineSpec, GatewaySpec, GroupSpec, WatcherSpec, WorkerSpec

ABANDON_GRACE_S = 2.0
"""For ranks whose group did not come about: they have served nobody yet."""
STOPPED_RANK_S = 20.0
"""A rank that stands still (SIGSTOP) for so long has been given up by its group, which waits 15 s for a word of it."""


@dataclass(frozen=True, slots=True)
class _Group:
    """One launch of a group: what its ranks share, and each rank's keys."""

    spec: GroupSpec
    meeting: Meeting
    secrets: tuple[str, ...] = field(repr=False)
    publics: tuple[str, ...]


class Launcher:
    """Starts units of one stack for one apply."""

    def __init__(self, cluster: Cluster, desired: Desired, stamp: Stamp, files: Files) -> None:
        self._cluster = cluster
        self._desired = desired
        self._stamp = stamp
        self._files = files

    async def start(self, action: Start) -> None:
        """Start all units of the action; those that are alive already are left alone. Raises `EffectError`.

        When a rank of a group cannot be started, the others are ended again before the error is raised.
        """
        group = self._group(action.units)
        try:
            await self._refuse_taken_ports(action.units)
            launches = [(placed, await self._launch(placed, group)) for placed in action.units]
        except (ShimError, TransportError, StoreError) as error:
            raise EffectError(f"{action.first.unit.id} could not be prepared: {error}") from error
        if group is None:
            for placed, launch in launches:
                await self._start_one(placed, launch)
            return
        starts = (self._start_rank(placed, launch, group) for placed, launch in launches)
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not failures and all(outcomes):
            return
        if not failures and not any(outcomes) and await self._is_one_launch(action.units):
            return  # it was started by an earlier try of the same action
        # One whose start was given up may have come about all the same; one that was alive before is not ours.
        await self._end(
            [placed for placed, outcome in zip(action.units, outcomes, strict=True) if outcome is not False]
        )
        if failures:
            raise failures[0]
        raise EffectError("ranks of an earlier launch are still running; run apply again")

    async def _refuse_taken_ports(self, units: tuple[Placed, ...]) -> None:
        """Raise `EffectError` where another stack has taken a port since the plan was made."""
        for name in dict.fromkeys(placed.unit.node for placed in units):
            claimed = claimed_ports((await self._cluster.nodes[name].shim.report(None)).units, self._cluster.stack)
            here = [placed for placed in units if placed.unit.node == name]
            wanted = [port for each in here for port in (each.port, each.link_port, each.control_port)]
            taken = next((port for port in wanted if port in claimed), None)
            if taken is not None:
                stack, unit = claimed[taken]
                raise EffectError(
                    f"port {taken} on {name} was taken by unit {unit} of stack {stack} since the plan was made; "
                    "run it again: it takes another one"
                )

    async def _end(self, units: list[Placed]) -> None:
        """End ranks whose group does not come about, all at once; what cannot be ended is found by the next apply."""

        async def stop(placed: Placed) -> None:
            node = self._cluster.nodes[placed.unit.node]
            await node.shim.stop(self._cluster.stack, placed.unit.id, grace_s=ABANDON_GRACE_S)

        await asyncio.gather(*(stop(placed) for placed in units), return_exceptions=True)

    async def _start_rank(self, placed: Placed, launch: UnitLaunch, group: _Group) -> bool:
        text = link_file(group.spec, group.meeting)
        node = self._cluster.nodes[placed.unit.node]
        if text is not None:
            try:
                path = self._link_path(await node.directories(), placed)
                await node.transport.push(text.encode(), path, mode=0o600)
            except TransportError as error:
                raise EffectError(f"the link file of {placed.unit.id} could not be written: {error}") from error
        return await self._start_one(placed, launch)

    async def _start_one(self, placed: Placed, launch: UnitLaunch) -> bool:
        """Start one unit and tell whether it was not alive before."""
        try:
            await self._cluster.nodes[placed.unit.node].shim.start(launch)
        except ShimError as error:
            if error.code != "already_running":
                raise EffectError(f"{placed.unit.id} could not be started: {error}") from error
            return False
        except TransportError as error:
            raise EffectError(f"{placed.unit.id} could not be started: {error}") from error
        return True

    async def _is_one_launch(self, units: tuple[Placed, ...]) -> bool:
        found: list[str | None] = []
        for placed in units:
            try:
                report = await self._cluster.nodes[placed.unit.node].shim.report(self._cluster.stack)
            except (ShimError, TransportError):
                return False
            ranks = [unit for unit in report.units if unit.unit == placed.unit.id and unit.alive]
            found += [rank.labels.get(LAUNCH_LABEL) for rank in ranks]
        return len(found) == len(units) and len(set(found)) == 1

    # -- what a unit is started with -------------------------------------------------------------------------------

    def _group(self, units: tuple[Placed, ...]) -> _Group | None:
        first = units[0]
        if not isinstance(first.unit.spec, WorkerSpec) or first.unit.spec.group is None:
            return None
        spec = first.unit.spec.group
        try:
            found = group_addresses(spec, self._desired.nodes)
            devices = rdma_devices(spec, self._desired.nodes) if spec.backend == "jaccl" else ()
        except AddressError as error:
            raise EffectError(str(error)) from error
        ports = [placed.link_port for placed in units[: len(found.links)]]
        links = tuple(f"{host}:{port}" for host, port in zip(found.links, ports, strict=True))
        meeting = Meeting(secrets.token_hex(8), f"{found.control}:{first.control_port}", links, devices)
        pairs = [zmq.curve_keypair() for _ in units]
        publics = tuple(public.decode() for public, _ in pairs)
        return _Group(spec, meeting, tuple(secret.decode() for _, secret in pairs), publics)

    async def _launch(self, placed: Placed, group: _Group | None) -> UnitLaunch:
        node = self._cluster.nodes[placed.unit.node]
        directories = await node.directories()
        argv, environment = await self._program(placed, node, directories, group)
        launch = group.meeting.launch if group else None
        return UnitLaunch(
            stack=self._cluster.stack,
            unit=placed.unit.id,
            argv=argv,
            env=environment,
            cwd=str(directories.state),
            labels=unit_labels(placed, self._desired.owner, self._stamp.generation, launch),
            grace_s=STOP_GRACE_S,
            stopped_s=STOPPED_RANK_S if group else None,
        )

    async def _program(
        self, placed: Placed, node: ReachedNode, directories: Directories, group: _Group | None
    ) -> tuple[list[str], Mapping[str, str]]:
        """Return the command of a unit and what its environment has on top of the login's."""
        python, stack, token = await node.python(), self._cluster.stack, self._token()
        match placed.unit.spec:
            case GatewaySpec() as spec:
                conf, keys = self._desired.owner, None
                if not node.is_local:
                    conf, keys = await deliver(node, stack, self._files), await deliver_keys(node, self._desired)
                routes = await self._cluster.routes_path()
                argv = gateway_argv(python, spec, conf, stack, routes, placed.unit.drain_s, keys)
                return argv, {
                    **gateway_environment(token, self._admin_token()),
                    **referred_variables(self._files, os.environ),
                }
            case WatcherSpec():
                argv = watcher_argv(python, self._desired.owner, stack)
                return argv, {**watcher_environment(), **referred_variables(self._files, os.environ)}
            case EngineSpec() as spec:
                return await self._engine(spec, node, python, placed.port, token)
            case WorkerSpec() as spec:
                path, *others = [await model_path(self._cluster, node, wish) for wish in wishes_of(spec)]
                draft = others[0] if others else None
                meeting = group.meeting if group else None
                budget = str(directories.allotment(stack))
                demand = Demand(str(directories.room), budget) if spec.on_demand else None
                argv = worker_argv(python, spec, path, placed.port, meeting, demand, draft)
                return argv, {**unit_environment(token), **self._rank_environment(placed, spec, directories, group)}

    async def _engine(
        self, spec: EngineSpec, node: ReachedNode, python: str, port: int | None, token: str
    ) -> tuple[list[str], Mapping[str, str]]:
        form = engines.model_form(spec)
        path = "" if form is None else await model_path(self._cluster, node, Wish(spec.model, form))
        host = bind_address(spec.host)
        try:
            # A node that runs engines only has no environment of ours.
            program = await find_program(node.transport, (await node.site()).python, spec, python)
            found = engines.launch(spec, program=program, host=host, port=port or 0, model_path=path, token=token)
        except engines.EngineError as error:
            raise EffectError(str(error)) from error
        return list(found.argv), found.env

    def _rank_environment(
        self, placed: Placed, spec: WorkerSpec, directories: Directories, group: _Group | None
    ) -> Mapping[str, str]:
        if group is None:
            return {}
        place = rank_environment(group.spec, spec.rank, group.meeting, self._link_path(directories, placed))
        return {**place, **control_environment(group.secrets[spec.rank], group.publics)}

    def _token(self) -> str:
        try:
            return self._cluster.directories.worker_token(self._cluster.stack)
        except OSError as error:
            raise EffectError(f"the worker token cannot be kept: {error}") from error

    def _admin_token(self) -> str:
        try:
            return self._cluster.directories.admin_token(self._cluster.stack)
        except OSError as error:
            raise EffectError(f"the gateway's token cannot be kept: {error}") from error

    def _link_path(self, directories: Directories, placed: Placed) -> str:
        """Return where the link file of a rank lies: with its record, so that both are removed together."""
        return str(directories.state / "units" / self._cluster.stack / placed.unit.id / "links.json")


async def model_path(cluster: Cluster, node: ReachedNode, wish: Wish) -> str:
    """Return what a process on a node is told to load; raises EffectError where the model is not there."""
    if node.is_local:
        here = models_here(cluster.store, [wish]).get(wish)
        path = None if here is None else str(here.loadable)
    else:
        site = await node.site()
        path = await loadable_on(NodeStore(node.transport, site.python, site.cache), wish, cluster.store)
    if path is None:
        raise EffectError(f"model {wish.model.name} is not on {node.name}; run apply again")
    return path
