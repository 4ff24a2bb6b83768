"""I/O: asks every node and the gateway at once, and returns what was seen. One slow node delays only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
from pydantic import ValidationError

from orchestrator.addresses import url_host
from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.expand import Desired
from orchestrator.groups import asked_port
from orchestrator.models.sources import parse_source
from orchestrator.node.client import ShimError
from orchestrator.node.reports import NodeReport
from orchestrator.observed import ModelForm, Observed, ObservedUnit, PortHolder, Reachable, Unreachable
from orchestrator.readiness import client, gateway_reports, worker_readiness
from orchestrator.records import observed_unit
from orchestrator.transport.base import TransportError
from schemas.admin import ConfigReport
from schemas.base import ModelName, NodeName, StackName, UnitId
from schemas.routes import Routes
from schemas.unit import GatewaySpec, WorkerSpec

GIB = 1 << 30


async def collect(cluster: Cluster, desired: Desired) -> Observed:
    """Return what is true now of one stack. Never raises for a node: it becomes `Unreachable`."""
    async with client() as http, asyncio.TaskGroup() as group:
        asked = {
            name: group.create_task(_node(cluster, http, name, node, desired)) for name, node in cluster.nodes.items()
        }
    nodes = {name: task.result() for name, task in asked.items()}
    observed = Observed(nodes, read_routes(cluster.directories.routes(cluster.stack)))
    return await _with_gateway(observed)


def read_routes(path: Path) -> Routes | None:
    """Return the published routes; None where there are none or they cannot be read."""
    try:
        return Routes.from_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


async def _node(
    cluster: Cluster, http: httpx.AsyncClient, name: NodeName, node: ReachedNode, desired: Desired
) -> Reachable | Unreachable:
    try:
        report = await node.shim.report(None, _ports_of_interest(name, desired))
    except (TransportError, ShimError) as error:
        return Unreachable(str(error))
    seen = [observed_unit(name, unit, report.node.time) for unit in report.units if unit.stack == cluster.stack]
    units = {unit.id: replace(unit, owner=_owner(unit.owner, desired.owner)) for unit in seen}
    token = cluster.directories.known_worker_token(cluster.stack)
    async with asyncio.TaskGroup() as group:
        probes = {
            unit_id: group.create_task(worker_readiness(http, _url(unit), token))
            for unit_id, unit in units.items()
            if unit.alive and unit.port is not None and isinstance(unit.spec, WorkerSpec)
        }
    for unit_id, probe in probes.items():
        readiness = probe.result()
        if readiness is not None:
            units[unit_id] = replace(units[unit_id], ready=readiness.is_ready, load_s=readiness.load_s)
    return Reachable(
        units=units,
        ports=_ports(report),
        models=await asyncio.to_thread(_installed, cluster, desired),
        memory_gib=(report.node.memory_total_bytes or 0) / GIB or None,
        memory_available_gib=(report.node.memory_available_bytes or 0) / GIB or None,
    )


def _url(unit: ObservedUnit) -> str:
    host = unit.spec.host if isinstance(unit.spec, WorkerSpec) else None
    return f"http://{url_host(host)}:{unit.port}"


def _ports_of_interest(name: NodeName, desired: Desired) -> set[int]:
    own = desired.nodes[name].port_range() if name in desired.nodes else ()
    asked = {asked_port(unit.spec) for unit in desired.units.values() if unit.node == name}
    return {*own, *(port for port in asked if port is not None)}


def _ports(report: NodeReport) -> Mapping[int, PortHolder]:
    return {
        port: PortHolder(
            holder.pid,
            holder.command,
            (StackName(holder.stack), UnitId(holder.unit)) if holder.stack and holder.unit else None,
        )
        for port, holder in report.ports.items()
    }


def _installed(cluster: Cluster, desired: Desired) -> frozenset[tuple[ModelName, ModelForm]]:
    specs = [unit.spec.model for unit in desired.units.values() if isinstance(unit.spec, WorkerSpec)]
    return frozenset(
        (spec.name, "mlx")
        for spec in specs
        if cluster.store.lookup(parse_source(spec.source), spec.revision, spec.digest) is not None
    )


def _owner(recorded: str | None, wanted: str) -> str | None:
    """Return the wanted configuration directory where the recorded one is the same by another path, as by a link."""
    try:
        is_same = recorded is not None and Path(recorded).samefile(wanted)
    except OSError:
        return recorded
    return wanted if is_same else recorded


async def _with_gateway(observed: Observed) -> Observed:
    """Ask the living gateways for what they serve, and mark those that answered as ready."""
    gateways = [unit for unit in observed.units() if unit.alive and isinstance(unit.spec, GatewaySpec)]
    reports: dict[int, ConfigReport] = {}
    for bind, port in sorted(
        {(unit.spec.bind, unit.spec.port) for unit in gateways if isinstance(unit.spec, GatewaySpec)}
    ):
        reports |= await gateway_reports(bind, port, {unit.pid for unit in gateways if unit.pid is not None})
    nodes = dict(observed.nodes)
    for unit in gateways:
        node = nodes[unit.node]
        if unit.pid in reports and isinstance(node, Reachable):
            nodes[unit.node] = replace(node, units={**node.units, unit.id: replace(unit, ready=True)})
    heard = _latest(reports, gateways)
    return replace(observed, nodes=nodes, gateway=heard)


def _latest(reports: Mapping[int, ConfigReport], gateways: Iterable[ObservedUnit]) -> ConfigReport | None:
    ours = {unit.pid: unit.started_at or 0.0 for unit in gateways}
    heard = [report for pid, report in reports.items() if pid in ours]
    return max(heard, key=lambda report: ours[report.pid], default=None)
