"""I/O: asks every node and the gateway at once, and returns what was seen. One slow node delays only itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
from pydantic import TypeAdapter, ValidationError

from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.expand import Desired
from orchestrator.models.sources import parse_source
from orchestrator.node.client import ShimError
from orchestrator.node.reports import NodeReport, UnitReport, crashes_s
from orchestrator.observed import ModelForm, Observed, ObservedUnit, PortHolder, Reachable, Unreachable
from orchestrator.readiness import client, gateway_reports, worker_readiness, worker_url
from orchestrator.transport.base import TransportError
from schemas.admin import ConfigReport
from schemas.base import ModelName, NodeName, StackName, UnitId
from schemas.routes import Routes
from schemas.unit import AnyUnitSpec, GatewaySpec, UnitSpec, WorkerSpec

GIB = 1 << 30
SPEC_LABEL = "spec"
PORT_LABEL = "port"
OWNER_LABEL = "owner"
GENERATION_LABEL = "generation"

_SPEC: TypeAdapter[AnyUnitSpec] = TypeAdapter(UnitSpec)


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
    seen = [_unit(name, unit, report.node.time) for unit in report.units if unit.stack == cluster.stack]
    units = {unit.id: replace(unit, owner=_owner(unit.owner, desired.owner)) for unit in seen}
    token = cluster.directories.known_worker_token(cluster.stack)
    async with asyncio.TaskGroup() as group:
        probes = {
            unit_id: group.create_task(worker_readiness(http, worker_url(unit, node.host), token))
            for unit_id, unit in units.items()
            if unit.alive and isinstance(unit.spec, WorkerSpec) and unit.port is not None
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


def _ports_of_interest(name: NodeName, desired: Desired) -> set[int]:
    own = desired.nodes[name].port_range() if name in desired.nodes else ()
    return {*own, *(unit.spec.port for unit in desired.units.values() if unit.node == name and unit.spec.port)}


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


def _unit(node: NodeName, report: UnitReport, now: float) -> ObservedUnit:
    port = report.labels.get(PORT_LABEL, "")
    return ObservedUnit(
        id=UnitId(report.unit),
        node=node,
        alive=report.alive,
        phase="exited" if report.phase == "lost" else report.phase,
        spec=_spec(report.labels.get(SPEC_LABEL)),
        port=int(port) if port.isdigit() else None,
        owner=report.labels.get(OWNER_LABEL),
        pid=report.pid,
        started_at=report.started_at,
        exit=exit_words(report),
        log_tail=tuple(report.log_tail.splitlines()),
        crashes_s=crashes_s(report.ends, now),
    )


def _owner(recorded: str | None, wanted: str) -> str | None:
    """Return the wanted configuration directory where the recorded one is the same by another path, as by a link."""
    try:
        is_same = recorded is not None and Path(recorded).samefile(wanted)
    except OSError:
        return recorded
    return wanted if is_same else recorded


def _spec(text: str | None) -> AnyUnitSpec | None:
    try:
        return None if text is None else _SPEC.validate_json(text)
    except ValidationError:
        return None  # written by a later version; the unit is there all the same


def exit_words(report: UnitReport) -> str | None:
    """Say how a unit ended; None for a living one."""
    if report.alive:
        return None
    if report.exit_signal is not None:
        return f"killed by {_signal_name(report.exit_signal)}"
    return "died with its supervisor" if report.exit_code is None else f"exit code {report.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
