"""I/O: asks every node, helper and the gateway at once, and returns what was seen. One slow node delays only itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import httpx

from orchestrator.addresses import url_host
from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.drafting import drafted_pairs
from orchestrator.engines import EngineError
from orchestrator.engines.probe import is_alive
from orchestrator.expand import Desired, DesiredUnit
from orchestrator.helpers.observe import observe
from orchestrator.installed import Installed, InstalledMemory
from orchestrator.models.errors import StoreError
from orchestrator.models.node_store import NodeStore
from orchestrator.models.read_facts import known_facts
from orchestrator.models.sync import models_here, remote_models
from orchestrator.models.vocabulary import foreign_tokens
from orchestrator.models.wishes import Wish, wishes_of
from orchestrator.node.client import ShimError
from orchestrator.node.provision import is_provisioned
from orchestrator.node.reports import NodeReport
from orchestrator.observed import Observed, ObservedUnit, OnDemandSeen, PortHolder, Reachable, Unreachable
from orchestrator.policy import SILENT_LIMIT_S
from orchestrator.published import read_routes
from orchestrator.readiness import client, gateway_reports, worker_readiness, worker_status
from orchestrator.records import claimed_ports, observed_unit
from orchestrator.references import References
from orchestrator.transport.base import TransportError
from schemas.admin import ConfigReport
from schemas.base import NodeName, StackName, UnitId
from schemas.routes import Routes
from schemas.stack import Canary
from schemas.unit import EngineSpec, GatewaySpec, ModelSpec, WatcherSpec, WorkerSpec, models_of, slot_of

GIB = 1 << 30
AT_ONCE = 32
"""Nodes that are asked at the same time: each takes a process of ours and a few file descriptors."""
NODE_S = 60.0
"""What a node may take for all its answers. One that hangs is as unknown as one that does not answer at all."""
GATEWAY_START_S = 60.0
"""A gateway that is older has answered before: it serves before it is counted as started."""
POLL_S = 0.5

Note = Callable[[str], None]


async def collect(
    cluster: Cluster,
    desired: Desired,
    *,
    patience_s: float = 0.0,
    note: Note = lambda _: None,
    installed: InstalledMemory | None = None,
) -> Observed:
    """Return what is true now of one stack. Never raises for a node: it becomes `Unreachable`.

    A unit that is routed and gives no answer is asked again for `patience_s`, after `note` was told of it. Nodes that
    are in `installed` are not asked for their models and their environment.
    """
    routes = await _routes(cluster)
    look = _Look(cluster, desired, routes, patience_s, note, installed or InstalledMemory())
    specs = {model for unit in desired.units.values() for model in models_of(unit.spec)}
    async with client() as http, asyncio.TaskGroup() as group:
        helpers = group.create_task(observe(http, desired.helpers, os.environ))
        facts = group.create_task(known_facts(cluster.store, specs))
        foreign = group.create_task(asyncio.to_thread(foreign_tokens, cluster.store, drafted_pairs(desired)))
        asked = {name: group.create_task(look.node(name, node)) for name, node in cluster.nodes.items()}
    nodes = {name: task.result() for name, task in asked.items()}
    references = await asyncio.to_thread(References(cluster).known, _canaries(desired))
    observed = Observed(
        nodes,
        routes,
        helpers=helpers.result(),
        facts=facts.result(),
        references=references,
        foreign_tokens=foreign.result(),
    )
    return await look.with_gateway(observed)


async def with_worker_status(cluster: Cluster, observed: Observed) -> Observed:
    """Return the same with what every living worker says of itself at length. Never raises."""
    token = cluster.directories.known_worker_token(cluster.stack)

    async def ask(unit: ObservedUnit) -> ObservedUnit:
        if not unit.alive or unit.port is None or not isinstance(unit.spec, WorkerSpec):
            return unit
        async with cluster.nodes[unit.node].http() as http:
            return replace(unit, worker=await worker_status(http, worker_url(unit.spec.host, unit.port), token))

    nodes = dict(observed.nodes)
    for unit in await asyncio.gather(*(ask(unit) for unit in observed.units())):
        node = nodes[unit.node]
        if isinstance(node, Reachable):
            nodes[unit.node] = replace(node, units={**node.units, unit.id: unit})
    return replace(observed, nodes=nodes)


def worker_url(host: str | None, port: int) -> str:
    """Return where a worker is asked from its own node."""
    return f"http://{url_host(host)}:{port}"


async def _routes(cluster: Cluster) -> Routes | None:
    """Return the published routes; a gateway's node that cannot be asked has none that anybody could change."""
    if not cluster.nodes:
        return None
    try:
        return await read_routes(cluster.gateway_node.transport, await cluster.routes_path())
    except TransportError:
        return None


class _Look:
    """One look at a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        desired: Desired,
        routes: Routes | None,
        patience_s: float,
        note: Note,
        installed: InstalledMemory,
    ) -> None:
        self._cluster = cluster
        self._desired = desired
        self._patience_s = patience_s
        self._note = note
        self._installed = installed
        self._token = cluster.directories.known_worker_token(cluster.stack)
        self._admin_token = cluster.directories.known_admin_token(cluster.stack)
        self._routed = {entry.unit for entry in routes.instances if entry.state == "ready"} if routes else set()
        self._waited_for: set[UnitId] = set()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._ahead_s: dict[NodeName, float] = {}
        """How far each node's clock is ahead of ours: ages are told by the node's own."""

    async def node(self, name: NodeName, node: ReachedNode) -> Reachable | Unreachable:
        """Return what one node says."""
        async with self._places:
            try:
                async with asyncio.timeout(NODE_S + self._patience_s):
                    return await self._ask(name, node)
            except (TransportError, ShimError, StoreError) as error:
                return Unreachable(str(error).removeprefix(f"{name}: "))
            except TimeoutError:
                return Unreachable(f"gave no answer within {NODE_S + self._patience_s:.0f} s")

    async def _ask(self, name: NodeName, node: ReachedNode) -> Reachable:
        report = await node.shim.report(None, _ports_of_interest(name, self._desired))
        now = report.node.time
        self._ahead_s[name] = now - time.time()
        seen = [observed_unit(name, unit, now) for unit in report.units if unit.stack == self._cluster.stack]
        units = {unit.id: replace(unit, owner=_owner(unit.owner, self._desired.owner)) for unit in seen}
        async with node.http() as http, asyncio.TaskGroup() as group:
            probes = [group.create_task(self._probed(http, unit)) for unit in units.values()]
        units |= {probe.result().id: probe.result() for probe in probes}
        installed = await self._has(name, node)
        return Reachable(
            units=units,
            ports=_ports(report, self._cluster.stack),
            models=installed.models,
            memory_gib=(report.node.memory_total_bytes or 0) / GIB or None,
            memory_available_gib=(report.node.memory_available_bytes or 0) / GIB or None,
            is_provisioned=installed.is_provisioned,
        )

    async def _probed(self, http: httpx.AsyncClient, unit: ObservedUnit) -> ObservedUnit:
        """Return a unit with what its own server says; ranks behind the first have none."""
        if isinstance(unit.spec, WatcherSpec):
            return replace(unit, ready=unit.alive)
        if not unit.alive or unit.port is None or not isinstance(unit.spec, WorkerSpec | EngineSpec):
            return unit
        url, began = f"http://{url_host(unit.spec.host)}:{unit.port}", time.monotonic()
        while True:
            heard = await self._heard(http, unit, unit.spec, url)
            if heard is not None:
                return heard
            silent_s = time.monotonic() - began
            if unit.id not in self._routed:
                return unit
            if silent_s >= self._patience_s:
                return replace(unit, silent_s=max(silent_s, self._patience_s))
            self._wait_for(unit)
            await asyncio.sleep(POLL_S)

    async def _heard(
        self, http: httpx.AsyncClient, unit: ObservedUnit, spec: WorkerSpec | EngineSpec, url: str
    ) -> ObservedUnit | None:
        """Return a unit with what it says of itself; None where it gives no answer."""
        if isinstance(spec, EngineSpec):
            return replace(unit, ready=True) if await is_alive(http, spec, url, self._token) else None
        readiness = await worker_readiness(http, url, self._token)
        if readiness is None:
            return None
        # a group that nobody has judged yet, or that ends as it failed, is as one that still loads
        is_judged = readiness.canary is not None and readiness.canary.outcome != "failed"
        is_ready = readiness.takes_requests and (spec.group is None or is_judged)
        demand = None if readiness.on_demand is None else OnDemandSeen(readiness.phase, readiness.on_demand)
        return replace(unit, ready=is_ready, load_s=readiness.load_s, verdict=readiness.canary, demand=demand)

    def _wait_for(self, unit: ObservedUnit) -> None:
        if unit.id in self._waited_for:
            return
        self._waited_for.add(unit.id)
        self._note(
            f"Waiting for an answer of {unit.node}/{slot_of(unit.id)}, which runs and says nothing, "
            f"for up to {self._patience_s:.0f} s ..."
        )

    async def _has(self, name: NodeName, node: ReachedNode) -> Installed:
        """Return what a node has of what its units need; one that had it all a while ago is not asked again."""
        wishes = {wish for unit in self._desired.units.values() if unit.node == name for wish in _wishes(unit)}
        wanted = tuple(sorted(wishes, key=lambda wish: (wish.model.name, wish.form)))
        if node.is_local:
            here = await asyncio.to_thread(models_here, self._cluster.store, wanted) if wanted else ()
            return Installed(frozenset((wish.model.name, wish.form) for wish in here), is_provisioned=True)
        known = self._installed.recall(name, wanted, time.monotonic())
        if known is not None:
            return known
        site = await node.site()
        store = NodeStore(node.transport, site.python, site.cache)
        models = await remote_models(store, wanted, self._cluster.store) if wanted else frozenset()
        found = Installed(models, await is_provisioned(node.transport, site))
        if found.is_provisioned and len(models) == len(wanted):
            self._installed.note(name, wanted, time.monotonic(), found)
        return found

    # -- the gateway -------------------------------------------------------------------------------------------------

    async def with_gateway(self, observed: Observed) -> Observed:
        """Ask the living gateways for what they serve, and mark those that answered as ready; ranks follow theirs."""
        observed = _with_ranks(observed)
        gateways = [unit for unit in observed.units() if unit.alive and isinstance(unit.spec, GatewaySpec)]
        if not gateways:
            return observed
        began, limit_s = time.monotonic(), min(self._patience_s, SILENT_LIMIT_S)
        while True:
            reports = await self._reports(gateways)
            silent = [unit for unit in gateways if unit.pid not in reports and self._is_old(unit)]
            silent_s = time.monotonic() - began
            if not silent or silent_s >= limit_s:
                break
            self._wait_for(silent[0])
            await asyncio.sleep(POLL_S)
        nodes = dict(observed.nodes)
        for unit in gateways:
            node = nodes[unit.node]
            if isinstance(node, Reachable):
                how_long = max(silent_s, self._patience_s) if unit in silent else 0.0
                heard = replace(unit, ready=unit.pid in reports, silent_s=how_long)
                nodes[unit.node] = replace(node, units={**node.units, unit.id: heard})
        return replace(observed, nodes=nodes, gateway=_latest(reports, gateways))

    def _is_old(self, unit: ObservedUnit) -> bool:
        now = time.time() + self._ahead_s.get(unit.node, 0.0)
        return unit.started_at is not None and now - unit.started_at > GATEWAY_START_S

    async def _reports(self, gateways: list[ObservedUnit]) -> dict[int, ConfigReport]:
        places = {
            (unit.node, unit.spec.bind, unit.spec.port) for unit in gateways if isinstance(unit.spec, GatewaySpec)
        }
        reports: dict[int, ConfigReport] = {}
        for node, bind, port in sorted(places):
            pids = {unit.pid for unit in gateways if unit.node == node and unit.pid is not None}
            reports |= await gateway_reports(self._cluster.nodes[node].http, bind, port, pids, self._admin_token)
        return reports


def _canaries(desired: Desired) -> set[tuple[ModelSpec, Canary]]:
    """Return what the groups of a stack are to be asked."""
    units = desired.units.values()
    return {(unit.spec.model, unit.canary) for unit in units if isinstance(unit.spec, WorkerSpec) and unit.canary}


def _wishes(unit: DesiredUnit) -> tuple[Wish, ...]:
    """Return what a unit loads; nothing where it names an engine's arguments that cannot be used."""
    try:
        return wishes_of(unit.spec)
    except EngineError:
        return ()  # its start says why


def _with_ranks(observed: Observed) -> Observed:
    """Mark the ranks behind the first as ready with it, where they are of one launch."""
    first = {
        (unit.spec.service, unit.spec.replica, unit.launch): unit
        for unit in observed.units()
        if isinstance(unit.spec, WorkerSpec) and unit.spec.rank == 0 and unit.alive
    }
    nodes = dict(observed.nodes)
    for unit in observed.units():
        node, spec = nodes[unit.node], unit.spec
        if isinstance(node, Reachable) and isinstance(spec, WorkerSpec) and spec.rank > 0 and unit.alive:
            leader = first.get((spec.service, spec.replica, unit.launch))
            follower = replace(unit, ready=leader is not None and leader.ready)
            nodes[unit.node] = replace(node, units={**node.units, unit.id: follower})
    return replace(observed, nodes=nodes)


def _ports_of_interest(name: NodeName, desired: Desired) -> set[int]:
    own = desired.nodes[name].port_range() if name in desired.nodes else ()
    specs = [unit.spec for unit in desired.units.values() if unit.node == name]
    return {*own, *(spec.port for spec in specs if not isinstance(spec, WatcherSpec) and spec.port)}


def _ports(report: NodeReport, stack: StackName) -> Mapping[int, PortHolder]:
    """Return who has which port; what another stack has started may not listen yet."""
    claimed = {port: PortHolder(None, "", holder) for port, holder in claimed_ports(report.units, stack).items()}
    return claimed | {
        port: PortHolder(
            holder.pid,
            holder.command,
            (StackName(holder.stack), UnitId(holder.unit)) if holder.stack and holder.unit else None,
        )
        for port, holder in report.ports.items()
    }


def _owner(recorded: str | None, wanted: str) -> str | None:
    """Return the wanted configuration directory where the recorded one is the same by another path, as by a link."""
    try:
        is_same = recorded is not None and Path(recorded).samefile(wanted)
    except OSError:
        return recorded
    return wanted if is_same else recorded


def _latest(reports: Mapping[int, ConfigReport], gateways: Iterable[ObservedUnit]) -> ConfigReport | None:
    ours = {unit.pid: unit.started_at or 0.0 for unit in gateways}
    heard = [report for pid, report in reports.items() if pid in ours]
    return max(heard, key=lambda report: ours[report.pid], default=None)
