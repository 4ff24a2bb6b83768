"""I/O: what the actions of a plan really do: shims, the model store, `routes.json` and the gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.collect import GENERATION_LABEL, OWNER_LABEL, PORT_LABEL, SPEC_LABEL, exit_words, read_routes
from orchestrator.commands import gateway_argv, unit_environment, worker_argv
from orchestrator.execute import EffectError, Progress, Report
from orchestrator.expand import Desired, DesiredUnit
from orchestrator.models.errors import StoreError
from orchestrator.models.sources import parse_source
from orchestrator.models.work import ProgressEvent
from orchestrator.node.client import ShimError
from orchestrator.node.reports import UnitLaunch, UnitReport
from orchestrator.plan import AwaitReady, Drain, Provision, Publish, Pull, Rewire, Start, Stop, Sync, Withdraw
from orchestrator.readiness import client, gateway_reports, reload_gateway, worker_readiness
from orchestrator.reconcile import GATEWAY_SLOT, STOP_GRACE_S
from orchestrator.transport.base import TransportError
from schemas.base import NodeName, UnitId
from schemas.routes import Instance, Routes
from schemas.unit import GatewaySpec, WorkerSpec, slot_of

POLL_S = 0.2
"""Between two looks at a unit that is loading; a small model is ready within a second."""
LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an apply writes beside everything it changes."""

    generation: int
    revision: str | None


class RealEffects:
    """Does the actions of one plan. Owns `routes.json` while it does."""

    def __init__(self, cluster: Cluster, desired: Desired, stamp: Stamp) -> None:
        self._cluster = cluster
        self._desired = desired
        self._stamp = stamp
        self._routes_lock = asyncio.Lock()

    async def provision(self, action: Provision, report: Report) -> None:
        """Build the runtime environment of a node."""
        report(Progress("environment", 0, None, "steps"))
        raise EffectError(f"{action.node} is not this machine")

    async def pull(self, action: Pull, report: Report) -> None:
        """Ask a helper for a model."""
        report(Progress("pull", 0, None, "bytes"))
        raise EffectError(f"{action.helper} cannot pull {action.model}")

    async def sync(self, action: Sync, report: Report) -> None:
        """Fetch and convert a model; a cancelled fetch leaves nothing half-installed and is resumed later."""
        model, cancel, loop = action.model, threading.Event(), asyncio.get_running_loop()

        def forward(event: ProgressEvent) -> None:
            progress = Progress(event.phase, event.done, event.total, event.unit)
            loop.call_soon_threadsafe(report, progress)

        def install() -> None:
            source = parse_source(model.source)
            self._cluster.store.install(source, model.revision, model.digest, progress=forward, cancel=cancel)

        installing = loop.run_in_executor(None, install)
        try:
            await asyncio.shield(installing)
        except asyncio.CancelledError:
            cancel.set()
            await asyncio.wait([installing])  # its tools are killed before anybody is told that it ended
            raise
        except StoreError as error:
            raise EffectError(str(error)) from error

    async def start(self, action: Start) -> None:
        """Start a unit's process; one that is alive already is left alone."""
        try:
            token = self._cluster.directories.worker_token(self._cluster.stack)
        except OSError as error:
            raise EffectError(f"the worker token cannot be kept: {error}") from error
        node, unit, port = self._node(action.node), action.first.unit, action.first.port
        launch = UnitLaunch(
            stack=self._cluster.stack,
            unit=unit.id,
            argv=self._argv(unit, node, port or 0),
            env=unit_environment(token),
            cwd=str(self._cluster.directories.state),
            labels=self._labels(unit, port or 0),
            grace_s=STOP_GRACE_S,
        )
        try:
            await node.shim.start(launch)
        except ShimError as error:
            if error.code != "already_running":
                raise EffectError(f"{unit.id} could not be started: {error}") from error
        except TransportError as error:
            raise EffectError(str(error)) from error

    async def await_ready(self, action: AwaitReady, report: Report) -> None:
        """Wait for a worker's first token, or for a gateway that serves; its end or the time limit is a failure."""
        try:
            async with asyncio.timeout(action.timeout_s):
                await self._until_ready(action, report)
        except TimeoutError as error:
            raise EffectError(
                f"{action.unit} was not ready after {action.timeout_s:.0f} s; it is left as it is",
                log_tail=await self._log_tail(action.node, action.unit),
                next_step=("logs", self._cluster.stack, slot_of(action.unit)),
            ) from error
        except TransportError as error:
            raise EffectError(str(error)) from error

    async def publish(self, action: Publish) -> None:
        """Put an instance into the routes."""
        await self._write_routes(lambda entries: {**entries, action.instance.unit: action.instance})

    async def withdraw(self, action: Withdraw) -> None:
        """Take a unit out of the routes."""
        await self._unroute(action.unit)

    async def drain(self, action: Drain) -> None:
        """Mark an instance as draining and wait until the gateway has nothing in flight there."""
        entry = self._entries().get(action.unit)
        if entry is None:
            return
        draining = entry.model_copy(update={"state": "draining"})
        await self._write_routes(lambda entries: {**entries, action.unit: draining})
        gateway = self._gateway()
        if gateway is None:
            return
        try:
            async with asyncio.timeout(action.drain_s):
                while await self._in_flight(gateway, entry.url):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return  # the limit is the promise: what is still in flight ends with an error event

    async def stop(self, action: Stop) -> None:
        """End a unit and take it out of the routes."""
        try:
            await self._node(action.node).shim.stop(self._cluster.stack, action.unit, grace_s=action.grace_s)
        except (ShimError, TransportError) as error:
            raise EffectError(f"{action.unit} could not be stopped: {error}") from error
        if action.unit in self._entries():
            await self._unroute(action.unit)

    async def rewire(self, _action: Rewire) -> None:
        """Write this apply's overrides for the gateway, and make a running one read everything now."""
        await self._write_routes(lambda entries: entries)
        gateway = self._gateway()
        if gateway is None:
            return
        served = await reload_gateway(gateway.bind, gateway.port)
        if served is not None and not served.is_current:
            problems = tuple(str(problem) for problem in served.problems)
            raise EffectError("the gateway cannot use the files and keeps its last good routes", log_tail=problems)

    # -- routes ----------------------------------------------------------------------------------------------------

    def _entries(self) -> dict[UnitId, Instance]:
        routes = read_routes(self._cluster.directories.routes(self._cluster.stack))
        return {instance.unit: instance for instance in routes.instances} if routes is not None else {}

    async def _unroute(self, gone: UnitId) -> None:
        await self._write_routes(lambda entries: {unit: entry for unit, entry in entries.items() if unit != gone})

    async def _write_routes(self, change: Callable[[dict[UnitId, Instance]], Mapping[UnitId, Instance]]) -> None:
        async with self._routes_lock:
            entries = change(self._entries())
            routes = Routes(
                stack=self._cluster.stack,
                generation=self._stamp.generation,
                revision=self._stamp.revision,
                overrides=self._desired.overrides,
                instances=tuple(entries[unit] for unit in sorted(entries)),
            )
            path = self._cluster.directories.routes(self._cluster.stack)
            try:
                await self._local().transport.push(
                    routes.model_dump_json(indent=2).encode() + b"\n", str(path), mode=0o600
                )
            except TransportError as error:
                raise EffectError(f"{path} could not be written: {error}") from error

    # -- units -----------------------------------------------------------------------------------------------------

    def _argv(self, unit: DesiredUnit, node: ReachedNode, port: int) -> list[str]:
        cluster = self._cluster
        match unit.spec:
            case GatewaySpec() as spec:
                routes = str(cluster.directories.routes(cluster.stack))
                conf = self._desired.owner
                return gateway_argv(cluster.python, spec, conf, cluster.stack, routes, unit.drain_s)
            case WorkerSpec() as spec:
                model = cluster.store.lookup(parse_source(spec.model.source), spec.model.revision, spec.model.digest)
                if model is None:
                    raise EffectError(f"model {spec.model.name} is not in the store; run apply again")
                return worker_argv(cluster.python, spec, str(model.path), port)

    def _labels(self, unit: DesiredUnit, port: int) -> dict[str, str]:
        return {
            SPEC_LABEL: unit.spec.model_dump_json(),
            PORT_LABEL: str(port),
            OWNER_LABEL: self._desired.owner,
            GENERATION_LABEL: str(self._stamp.generation),
        }

    async def _until_ready(self, action: AwaitReady, report: Report) -> None:
        wanted = next(unit for unit in self._desired.units.values() if unit.id == action.unit)
        token = self._cluster.directories.worker_token(self._cluster.stack)
        async with client() as http:
            while True:
                unit = await self._unit(action.node, action.unit)
                if unit is None or not unit.alive:
                    raise self._ended(action.unit, unit)
                if isinstance(wanted.spec, GatewaySpec):
                    reports = await gateway_reports(wanted.spec.bind, wanted.spec.port, {unit.pid or 0})
                    if unit.pid in reports:
                        return
                else:
                    url = f"http://{self._node(action.node).host}:{unit.labels.get(PORT_LABEL)}"
                    readiness = await worker_readiness(http, url, token)
                    if readiness is not None and readiness.is_ready:
                        return
                    if readiness is not None:
                        share = readiness.progress
                        done, total = (0, None) if share is None else (round(100 * share), 100)
                        report(Progress(readiness.phase, done, total, "percent"))
                await asyncio.sleep(POLL_S)

    def _ended(self, unit_id: UnitId, unit: UnitReport | None) -> EffectError:
        how = "it is gone" if unit is None else exit_words(unit) or "its lock is free"
        tail = () if unit is None else tuple(unit.log_tail.splitlines()[-LOG_TAIL_LINES:])
        next_step = ("logs", self._cluster.stack, slot_of(unit_id))
        return EffectError(f"{unit_id} ended before it was ready: {how}", log_tail=tail, next_step=next_step)

    async def _unit(self, node: NodeName, unit_id: UnitId) -> UnitReport | None:
        try:
            report = await self._node(node).shim.report(self._cluster.stack)
        except ShimError as error:
            raise EffectError(str(error)) from error
        return next((unit for unit in report.units if unit.unit == unit_id), None)

    async def _log_tail(self, node: NodeName, unit_id: UnitId) -> tuple[str, ...]:
        shim = self._node(node).shim
        try:
            async with shim.logs(self._cluster.stack, unit_id, lines=LOG_TAIL_LINES, follow=False) as lines:
                return tuple([line.decode("utf-8", "replace").rstrip() async for line in lines])
        except (ShimError, TransportError):
            return ()  # the failure is told without it

    async def _in_flight(self, gateway: GatewaySpec, url: str) -> int:
        reports = await gateway_reports(gateway.bind, gateway.port, set())
        endpoints = [endpoint for report in reports.values() for endpoint in report.endpoints]
        return sum(endpoint.in_flight for endpoint in endpoints if endpoint.url.rstrip("/") == url)

    def _gateway(self) -> GatewaySpec | None:
        unit = self._desired.units.get(GATEWAY_SLOT)
        return unit.spec if unit is not None and isinstance(unit.spec, GatewaySpec) else None

    def _node(self, name: NodeName) -> ReachedNode:
        return self._cluster.nodes[name]

    def _local(self) -> ReachedNode:
        gateway = self._desired.units.get(GATEWAY_SLOT)
        name = gateway.node if gateway is not None else next(iter(self._cluster.nodes))
        return self._cluster.nodes[name]
