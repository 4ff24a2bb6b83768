"""Pure: reconcile(desired, observed) -> Plan. Total and deterministic; the executor decides nothing after it.

Rules, in the order in which they are asked for each slot:

1. The wanted unit is alive and ready: keep it; anything else alive in its slot is drained and stopped.
2. It is alive and not ready: wait for it, then as 1.
3. Another unit fills the slot: replace it, by surge (start beside it, then stop it) or by swap (stop it, then start).
4. Nothing fills it: start it.
5. A slot that the stack does not want: drain and stop what is there.

A node that did not answer gets a `Defer` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.causes import difference, memory_notes, routing_differences, routing_notes
from orchestrator.expand import Desired, DesiredUnit
from orchestrator.observed import Observed, ObservedUnit, Reachable, Unreachable
from orchestrator.placement import (
    Placement,
    PortsExhaustedError,
    memory_conflicts,
    owner_conflicts,
    port_conflicts,
    stays,
)
from orchestrator.plan import (
    Action,
    ActionId,
    AwaitReady,
    Change,
    ChangeKind,
    Defer,
    Drain,
    Placed,
    Plan,
    Publish,
    Rewire,
    Start,
    Stop,
    Sync,
    Withdraw,
)
from schemas.base import ModelName, NodeName, SlotId, UnitId
from schemas.node import Node
from schemas.routes import Instance
from schemas.unit import GATEWAY_SERVICE, GatewaySpec, WorkerSpec

GATEWAY_SLOT = SlotId(f"{GATEWAY_SERVICE}-0.0")
STOP_GRACE_S = 15.0
"""Between TERM and KILL. A unit that drains on TERM gets its drain time on top."""
_SHOWN_ROUTING_CHANGES = 8


def reconcile(desired: Desired, observed: Observed) -> Plan:
    """Return what has to happen so that what runs is what the stack says."""
    return _Reconciliation(desired, observed).plan()


class _Reconciliation:
    """One run: collects changes and actions while it goes through the slots in order."""

    def __init__(self, desired: Desired, observed: Observed) -> None:
        self.desired = desired
        self.observed = observed
        self.placement = Placement(desired, observed)
        self.alive: dict[SlotId, list[ObservedUnit]] = {}
        self.ended: dict[UnitId, ObservedUnit] = {}
        for unit in observed.units():
            if unit.alive:
                self.alive.setdefault(unit.slot, []).append(unit)
            else:
                self.ended[unit.id] = unit
        self.changes: list[Change] = []
        self.fetches: list[Change] = []
        self.actions: dict[ActionId, Action] = {}
        self.conflicts: list[str] = []
        self.serving: set[str] = set()
        """Services of which something ready stays, or stays until its successor is ready."""
        self.pending: dict[str, str] = {}
        """Services that something is started for, and how long that takes."""
        self.drifted = 0
        self.port_stops = self._stops_by_port()

    def plan(self) -> Plan:
        self.conflicts += owner_conflicts(self.desired, self.observed)
        self.conflicts += port_conflicts(self.desired, self.observed)
        self.conflicts += memory_conflicts(self.desired, self.observed)
        self._defer_unreachable()
        self._rewire()
        for slot in sorted({*self.desired.units, *self.alive}):
            self._reconcile_slot(slot)
        self._withdraw_the_gone()
        return Plan(
            stack=self.desired.stack,
            changes=(*self.fetches, *self.changes),
            actions=tuple(self.actions.values()),
            conflicts=tuple(self.conflicts),
            routing=tuple(routing_notes(self.desired)),
            memory=tuple(memory_notes(self.desired, self.observed)),
            outages=tuple(self._outages()),
            drifted=self.drifted,
            nodes_seen=sum(isinstance(node, Reachable) for node in self.observed.nodes.values()),
            nodes=len(self.observed.nodes),
        )

    # -- slots ---------------------------------------------------------------------------------------------------

    def _reconcile_slot(self, slot: SlotId) -> None:
        wanted = self.desired.units.get(slot)
        alive = self.alive.get(slot, [])
        if wanted is None:
            for unit in alive:
                self._stop_unwanted(unit)
            return
        if isinstance(self.observed.nodes.get(wanted.node), Unreachable):
            return
        current = next((unit for unit in alive if unit.id == wanted.id and unit.node == wanted.node), None)
        others = [unit for unit in alive if unit is not current]
        if current is not None:
            ready = self._keep(wanted, current)
            for other in others:
                self._change("stop", _target(other.node, slot), f"{wanted.id} has taken its place")
                self._retire(other, f"{wanted.id} has taken its place", ready)
        elif others:
            self._replace(wanted, others)
        else:
            self._start_missing(wanted)

    def _keep(self, wanted: DesiredUnit, current: ObservedUnit) -> tuple[ActionId, ...]:
        """Keep a living unit; returns the actions after which it serves."""
        if not current.ready:
            cause = "started, not ready yet"
            self._change("await", _target(wanted.node, current.slot), cause)
            return self._await_and_publish(wanted, current.port, cause, ())
        if isinstance(wanted.spec, GatewaySpec):
            return ()
        self.serving.add(wanted.spec.service)
        instance = self._instance(wanted.spec, wanted.id, current.port)
        if instance is None or instance in self._published():
            return ()
        cause = f"{current.slot} is ready but not routed"
        self.changes.append(Change("rewire", GATEWAY_SERVICE, cause))
        action = Publish(id=_id("publish", wanted.id), node=wanted.node, cause=cause, instance=instance)
        return (self._add(action),)

    def _start_missing(self, wanted: DesiredUnit) -> None:
        ended = self.ended.get(wanted.id)
        cause = "not running" if ended is None or ended.exit is None else f"not running: {ended.exit}"
        self.drifted += ended is not None
        self._change("start", _target(wanted.node, wanted.spec.slot), cause)
        self._start(wanted, cause, self._memory_stops(wanted))

    def _replace(self, wanted: DesiredUnit, old: list[ObservedUnit]) -> None:
        how, why = self._replacement(wanted)
        cause = difference(wanted, old[0]) + (f" ({why})" if why else "")
        self.drifted += 1
        self.changes.append(Change("replace", _target(wanted.node, wanted.spec.slot), cause, how))
        if how == "surge":
            if any(unit.ready for unit in old):
                self.serving.add(_service(wanted))
            ready = self._start(wanted, cause, ())
            for unit in old:
                self._retire(unit, cause, ready)
            return
        stops = tuple(self._retire(unit, cause, ()) for unit in old)
        self._start(wanted, cause, (*stops, *self._memory_stops(wanted)))
        known = next((unit.load_s for unit in old if unit.load_s is not None), None)
        if known is not None:
            self.pending[_service(wanted)] = f"for about {known:.0f} s"

    def _replacement(self, wanted: DesiredUnit) -> tuple[str, str]:
        """Return `surge` or `swap`, and the reason where it is not what the stack asked for."""
        if isinstance(wanted.spec, GatewaySpec):
            return "surge", ""  # a gateway shares its port with the one before it (SO_REUSEPORT)
        if wanted.spec.port is not None and (wanted.node, wanted.spec.port) in self.port_stops:
            return "swap", "its port is in use until the old one stops"
        if wanted.update == "swap":
            return "swap", ""
        if wanted.update == "surge" or self.placement.fits_beside(wanted):
            return "surge", ""
        return "swap", "there is no memory for both" if wanted.memory_gib is not None else "its memory is unknown"

    def _stop_unwanted(self, unit: ObservedUnit) -> None:
        cause = "no longer in the stack" if self.desired.units else "the stack goes down"
        self.drifted += 1
        self._change("stop", _target(unit.node, unit.slot), cause)
        gateway_stops: tuple[ActionId, ...] = ()
        if unit.slot != GATEWAY_SLOT and GATEWAY_SLOT not in self.desired.units:
            gateway_stops = tuple(_id("stop", gateway.id) for gateway in self.alive.get(GATEWAY_SLOT, []))
        self._retire(unit, cause, gateway_stops)

    # -- actions -------------------------------------------------------------------------------------------------

    def _start(self, wanted: DesiredUnit, cause: str, after: tuple[ActionId, ...]) -> tuple[ActionId, ...]:
        """Add the actions that bring up a unit; returns those after which it serves."""
        try:
            port = self.placement.take_port(wanted)
        except PortsExhaustedError as error:
            self.conflicts.append(str(error))
            return ()
        if isinstance(wanted.spec, WorkerSpec):
            after = (*after, *self._sync(wanted.spec))
        elif "rewire" in self.actions:
            after = (*after, ActionId("rewire"))
        in_the_way = [] if wanted.spec.slot == GATEWAY_SLOT else self.port_stops.get((wanted.node, port), ())
        after = (*after, *(stop for stop in in_the_way if stop not in after))
        placed = (Placed(wanted, port),)
        action = Start(id=_id("start", wanted.id), node=wanted.node, cause=cause, after=after, units=placed)
        return self._await_and_publish(wanted, port, cause, (self._add(action),))

    def _await_and_publish(
        self, wanted: DesiredUnit, port: int | None, cause: str, after: tuple[ActionId, ...]
    ) -> tuple[ActionId, ...]:
        self.pending.setdefault(_service(wanted), f"until {wanted.spec.slot} is ready")
        ready = self._add(
            AwaitReady(
                id=_id("ready", wanted.id),
                node=wanted.node,
                cause=cause,
                after=after,
                unit=wanted.id,
                timeout_s=wanted.ready_timeout_s,
            )
        )
        instance = self._instance(wanted.spec, wanted.id, port)
        if instance is None:
            return (ready,)
        publish = Publish(
            id=_id("publish", wanted.id), node=wanted.node, cause=cause, after=(ready,), instance=instance
        )
        return (self._add(publish),)

    def _retire(self, unit: ObservedUnit, cause: str, after: tuple[ActionId, ...]) -> ActionId:
        """Add what ends a living unit; a unit that nobody routes to needs no draining."""
        old = next((u for u in self.desired.units.values() if u.spec.slot == unit.slot), None)
        drain_s = old.drain_s if old is not None else STOP_GRACE_S
        is_routed = any(instance.unit == unit.id for instance in self._published())
        if is_routed and GATEWAY_SLOT in self.desired.units:
            drain = Drain(
                id=_id("drain", unit.id), node=unit.node, cause=cause, after=after, unit=unit.id, drain_s=drain_s
            )
            after = (self._add(drain),)
        grace = STOP_GRACE_S + (drain_s if unit.slot == GATEWAY_SLOT else 0.0)
        stop = Stop(id=_id("stop", unit.id), node=unit.node, cause=cause, after=after, unit=unit.id, grace_s=grace)
        return self._add(stop)

    def _sync(self, spec: WorkerSpec) -> tuple[ActionId, ...]:
        node = self.observed.nodes.get(spec.node)
        name = ModelName(spec.model.name)
        if isinstance(node, Reachable) and (name, "mlx") in node.models:
            return ()
        action_id = ActionId(f"sync:{spec.node}/{name}")
        if action_id not in self.actions:
            cause = "not in the model store"
            self.fetches.append(Change("fetch", f"{spec.node}/{name}", f"{cause}: {spec.model.source}"))
            self._add(Sync(id=action_id, node=spec.node, cause=cause, model=spec.model))
        return (action_id,)

    # -- the gateway's view ----------------------------------------------------------------------------------------

    def _rewire(self) -> None:
        gateway = self.desired.units.get(GATEWAY_SLOT)
        if gateway is None:
            return
        cause = "first start"
        if self.observed.gateway is not None:
            differences = list(routing_differences(self.observed.gateway.routing, self.desired.routing))
            if not differences and not self.observed.gateway.is_current:
                differences = ["its last reading of the files failed"]
            if not differences:
                return
            hidden = len(differences) - _SHOWN_ROUTING_CHANGES
            shown = differences[:_SHOWN_ROUTING_CHANGES] + ([f"and {hidden} more"] if hidden > 0 else [])
            self.changes += [Change("rewire", GATEWAY_SERVICE, text) for text in shown]
            cause = "; ".join(differences)
        self._add(Rewire(id=ActionId("rewire"), node=gateway.node, cause=cause))

    def _withdraw_the_gone(self) -> None:
        if not self.desired.units:
            return  # the whole stack goes down, and its routes with it
        alive = {unit.id for units in self.alive.values() for unit in units}
        wanted = {unit.id for unit in self.desired.units.values()}
        for instance in self._published():
            seen = isinstance(self.observed.nodes.get(instance.node), Reachable)
            if instance.unit in alive or instance.unit in wanted or not seen:
                continue
            cause = f"{instance.unit} is gone"
            self.changes.append(Change("rewire", GATEWAY_SERVICE, cause))
            self._add(Withdraw(id=_id("withdraw", instance.unit), node=instance.node, cause=cause, unit=instance.unit))

    def _published(self) -> tuple[Instance, ...]:
        return self.observed.routes.instances if self.observed.routes is not None else ()

    def _instance(self, spec: WorkerSpec | GatewaySpec, unit: UnitId, port: int | None) -> Instance | None:
        """Return the routes entry of a unit; None for the gateway, for ranks behind the first, and without a port."""
        if isinstance(spec, GatewaySpec) or spec.rank != 0 or port is None:
            return None
        host = _host(self.desired.nodes[spec.node])
        return Instance(
            unit=unit,
            node=spec.node,
            service=spec.service,
            model=spec.model.name,
            url=f"http://{host}:{port}",
            state="ready",
        )

    def _outages(self) -> Iterator[str]:
        """Yield the roles that a running gateway cannot serve for a while."""
        if self.observed.gateway is None or not self.desired.units:
            return
        for name, role in sorted(self.desired.roles.items()):
            waits = [self.pending[service] for service in role.services if service in self.pending]
            if waits and not role.helpers and not self.serving.intersection(role.services):
                yield f"{name} {waits[0]}"

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def _defer_unreachable(self) -> None:
        for name, node in sorted(self.observed.nodes.items()):
            if isinstance(node, Unreachable):
                self._change("defer", name, f"cannot be reached: {node.reason}; what runs there is unknown")
                self._add(Defer(id=ActionId(f"defer:{name}"), node=name, cause=node.reason))

    def _memory_stops(self, wanted: DesiredUnit) -> tuple[ActionId, ...]:
        """Count a unit's memory; where it is not free, return the stops of unwanted units that make room for it."""
        if self.placement.take_memory(wanted):
            return ()
        unwanted = [unit for slot in sorted(self.alive) if slot not in self.desired.units for unit in self.alive[slot]]
        return tuple(_id("stop", unit.id) for unit in unwanted if unit.node == wanted.node)

    def _stops_by_port(self) -> dict[tuple[NodeName, int], tuple[ActionId, ...]]:
        """Return, for each port of a living unit that will be stopped, the action that frees it."""
        stops: dict[tuple[NodeName, int], tuple[ActionId, ...]] = {}
        for unit in (unit for units in self.alive.values() for unit in units):
            if unit.port is not None and not stays(unit.id, unit.node, self.desired, self.observed):
                key = (unit.node, unit.port)
                stops[key] = (*stops.get(key, ()), _id("stop", unit.id))
        return stops

    def _change(self, kind: ChangeKind, target: str, cause: str) -> None:
        self.changes.append(Change(kind, target, cause))

    def _add(self, action: Action) -> ActionId:
        self.actions[action.id] = action
        return action.id


def _id(verb: str, unit: UnitId) -> ActionId:
    return ActionId(f"{verb}:{unit}")


def _service(unit: DesiredUnit) -> str:
    return unit.spec.service if isinstance(unit.spec, WorkerSpec) else GATEWAY_SERVICE


def _target(node: NodeName, slot: SlotId) -> str:
    return f"{node}/{slot}"


def _host(node: Node) -> str:
    return "127.0.0.1" if node.reach == "local" or node.host is None else node.host
