"""Pure: slots. A slot is what is started and stopped as a whole: one unit, or all ranks of one sharded group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.observed import Observed, ObservedUnit
from orchestrator.policy import SILENT_LIMIT_S, Restart, restart
from schemas.base import NodeName, ServiceName, SlotId
from schemas.unit import (
    GATEWAY_SERVICE,
    WATCHER_SERVICE,
    AnyUnitSpec,
    EngineSpec,
    GatewaySpec,
    WatcherSpec,
    WorkerSpec,
)

GroupId = NewType("GroupId", str)
"""`<service>-<replica>`."""
GATEWAY_GROUP = GroupId(f"{GATEWAY_SERVICE}-0")
WATCHER_GROUP = GroupId(f"{WATCHER_SERVICE}-0")


def group_of(slot: str) -> GroupId:
    """Return the group that a slot `<service>-<replica>.<rank>` belongs to."""
    return GroupId(slot.rpartition(".")[0])


def service_of(group: GroupId) -> ServiceName:
    """Return the service of a group; `gateway` and `watcher` for these."""
    return ServiceName(group.rpartition("-")[0])


def listens(spec: AnyUnitSpec) -> bool:
    """Tell whether a unit has an HTTP port: all but ranks behind the first, and the watcher."""
    return not isinstance(spec, WatcherSpec) and not (isinstance(spec, WorkerSpec) and spec.rank != 0)


def asked_port(spec: AnyUnitSpec) -> int | None:
    """Return the port that the stack asks for; None where any will do or none is needed."""
    if isinstance(spec, WatcherSpec) or not listens(spec):
        return None
    return spec.port


def group_nodes(spec: AnyUnitSpec | None) -> tuple[NodeName, ...]:
    """Return the nodes of all ranks of a unit's group; only its own where it is none."""
    if isinstance(spec, WorkerSpec) and spec.group is not None:
        return spec.group.nodes
    return () if spec is None else (spec.node,)


@dataclass(slots=True)
class Slot:
    """What is wanted in one slot, and what is there."""

    id: GroupId
    wanted: tuple[DesiredUnit, ...] = ()
    """In rank order; empty where the stack wants nothing here."""
    current: list[ObservedUnit] = field(default_factory=list)
    """Living units that are the wanted ones, by rank; together they may be less than the whole."""
    others: list[ObservedUnit] = field(default_factory=list)
    """Other living units."""
    ended: dict[str, ObservedUnit] = field(default_factory=dict)
    """The remains of wanted units that do not live, by unit."""
    remains: list[ObservedUnit] = field(default_factory=list)
    """The remains of everything that was here and does not live."""

    @property
    def service(self) -> ServiceName:
        """Return the name under which routes know it."""
        return service_of(self.id)

    @property
    def first(self) -> DesiredUnit:
        """Return the wanted unit that answers for the whole."""
        return self.wanted[0]

    @property
    def alive(self) -> list[ObservedUnit]:
        """Return everything that lives here."""
        return [*self.current, *self.others]

    @property
    def is_gateway(self) -> bool:
        """Tell whether this is the gateway's slot."""
        return self.id == GATEWAY_GROUP

    @property
    def serves_model(self) -> bool:
        """Tell whether what is wanted here is called by the gateway."""
        return bool(self.wanted) and isinstance(self.first.spec, WorkerSpec | EngineSpec)

    @property
    def awaits(self) -> bool:
        """Tell whether what is wanted here has to answer before it counts; a watcher has nothing to answer with."""
        return not isinstance(self.first.spec, WatcherSpec)

    def nodes(self) -> tuple[NodeName, ...]:
        """Return all nodes that it crosses: those wanted, and those of the groups that live here."""
        names = {unit.node: None for unit in self.wanted}
        for unit in self.alive:
            names[unit.node] = None
            names |= dict.fromkeys(group_nodes(unit.spec))
        return tuple(names)

    def can_serve(self, unit: ObservedUnit) -> bool:
        """Tell whether a living unit can answer: it has, it is not silent, and of a group all ranks live."""
        if not unit.ready or unit.silent_s > SILENT_LIMIT_S:
            return False
        if not isinstance(unit.spec, WorkerSpec) or unit.spec.group is None:
            return True
        launched = [other for other in self.alive if other.launch == unit.launch and other.silent_s <= SILENT_LIMIT_S]
        peers = [o for o in launched if isinstance(o.spec, WorkerSpec) and o.spec.group == unit.spec.group]
        return unit.spec.rank == 0 and len(peers) == unit.spec.group.size

    def target(self) -> str:
        """Return `node/slot` for a single unit and `node+node/group` for a group, as plans show it."""
        units = [unit.spec for unit in self.wanted] or [unit.spec for unit in self.alive if unit.spec is not None]
        if len(units) == 1 and not (isinstance(units[0], WorkerSpec) and units[0].group is not None):
            return f"{units[0].node}/{units[0].slot}"
        nodes = list(dict.fromkeys(unit.node for unit in self.wanted) or dict.fromkeys(u.node for u in self.alive))
        shown = "+".join(nodes[:3]) + (f"+{len(nodes) - 3} more" if len(nodes) > 3 else "")
        return f"{shown}/{self.id}"

    def breakage(self) -> str | None:
        """Say why the living wanted units are no whole that can serve; None where they are, and where none lives."""
        if not self.current:
            return None
        silent = [unit for unit in self.current if unit.silent_s > SILENT_LIMIT_S]
        if silent:
            worst = max(silent, key=lambda unit: unit.silent_s)
            return f"{worst.slot} does not answer for {worst.silent_s:.0f} s"
        alive = {unit.id for unit in self.current}
        missing = [unit for unit in self.wanted if unit.id not in alive]
        if missing:
            return ", ".join(self._loss(unit) for unit in missing)
        if len(self.wanted) > 1 and len({unit.launch for unit in self.current}) > 1:
            return "its ranks are of different launches"
        return None

    def _loss(self, unit: DesiredUnit) -> str:
        ended = self.ended.get(unit.id)
        return f"{unit.spec.slot} {'is not running' if ended is None or ended.exit is None else f'ended: {ended.exit}'}"

    def absence(self) -> str:
        """Say why nothing of what is wanted lives."""
        ways = [ended.exit for unit in self.wanted if (ended := self.ended.get(unit.id)) and ended.exit is not None]
        return f"not running: {ways[0]}" if ways else "not running"

    def restart(self) -> Restart:
        """Judge by the ends of all ranks; a group ends as a whole, so that the rank that ended most often counts."""
        wanted = {unit.id for unit in self.wanted}
        units = [unit for unit in (*self.current, *self.ended.values()) if unit.id in wanted and unit.crashes_s]
        verdicts = [restart(unit.crashes_s) for unit in units]
        return Restart(
            max((verdict.crashes for verdict in verdicts), default=0),
            any(verdict.is_loop for verdict in verdicts),
            max((verdict.delay_s for verdict in verdicts), default=0.0),
        )


def slots_of(desired: Desired, observed: Observed) -> dict[GroupId, Slot]:
    """Return every slot in which something is wanted or lives, by name."""
    slots: dict[GroupId, Slot] = {}
    wanted: dict[GroupId, list[DesiredUnit]] = {}
    places: dict[str, NodeName] = {}
    for unit in desired.units.values():
        wanted.setdefault(group_of(unit.spec.slot), []).append(unit)
        places[unit.id] = unit.node
    for group, units in wanted.items():
        slots[group] = Slot(group, tuple(sorted(units, key=_rank)))
    for seen in observed.units():
        group = group_of(seen.slot)
        is_wanted = places.get(seen.id) == seen.node
        if seen.alive:
            slot = slots.setdefault(group, Slot(group))
            (slot.current if is_wanted else slot.others).append(seen)
        elif group in slots:
            slots[group].remains.append(seen)
            if is_wanted:
                slots[group].ended[seen.id] = seen
    for slot in slots.values():
        if len(slot.current) > 1:
            order = {unit.id: index for index, unit in enumerate(slot.wanted)}
            slot.current.sort(key=lambda unit: order[unit.id])
    return {group: slots[group] for group in sorted(slots)}


def _rank(unit: DesiredUnit) -> int:
    return unit.spec.rank if isinstance(unit.spec, WorkerSpec) else 0


def is_gateway(unit: ObservedUnit) -> bool:
    """Tell whether a unit is a gateway, also where its record cannot be read."""
    return isinstance(unit.spec, GatewaySpec) or unit.slot == SlotId(f"{GATEWAY_GROUP}.0")
