"""Pure: which ports a unit gets on its node, and who else has the ones that the stack asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.groups import Slot, asked_port, listens
from orchestrator.observed import Observed, ObservedUnit, PortHolder, Reachable
from orchestrator.plan import Placed
from schemas.base import NodeName
from schemas.unit import GatewaySpec, GroupSpec, WorkerSpec

_LONGEST_COMMAND = 100  # characters of a stranger's command that a plan shows


class PortsExhaustedError(Exception):
    """A node has no free port left in its range; carries the sentence that the plan shows."""


def ports_of(unit: ObservedUnit) -> set[int]:
    """Return all ports that a unit has, or had."""
    return {port for port in (unit.port, unit.link_port, unit.control_port) if port is not None}


class Ports:
    """The free ports of every node, used up as units are placed in a fixed order."""

    def __init__(self, desired: Desired, observed: Observed) -> None:
        self._desired = desired
        self._taken: dict[NodeName, set[int]] = {}
        self._ranges = {name: node.port_range() for name, node in desired.nodes.items()}
        for name, node in observed.nodes.items():
            if isinstance(node, Reachable):
                ours = {port for unit in node.units.values() if unit.alive for port in ports_of(unit)}
                self._taken[name] = {*node.ports, *ours}
        for unit in desired.units.values():
            asked = asked_port(unit.spec)
            if asked is not None and unit.node in self._taken:
                self._taken[unit.node].add(asked)

    def place(self, slot: Slot) -> tuple[Placed, ...]:
        """Return a slot's units with ports of their own; raises `PortsExhaustedError`.

        Every launch of a group gets ports that no unit seen of it has or had: MLX's ring shares its ports with whoever
        asks, so that a rank left over from an earlier launch could join the new one.
        """
        group = _group(slot.first)
        if group is None:
            return tuple(Placed(unit, self._http_port(unit, set())) for unit in slot.wanted)
        seen = (*slot.alive, *slot.remains)
        had = {(unit.node, port) for unit in seen for port in ports_of(unit)}
        placed = []
        for rank, unit in enumerate(slot.wanted):
            used = {port for node, port in had if node == unit.node}
            links = group.backend == "ring" or rank == 0
            placed.append(
                Placed(
                    unit,
                    self._http_port(unit, used),
                    link_port=self._take(unit, used) if links else None,
                    control_port=self._take(unit, used) if rank == 0 else None,
                )
            )
        return tuple(placed)

    def _http_port(self, unit: DesiredUnit, used: set[int]) -> int | None:
        if not listens(unit.spec):
            return None
        return asked_port(unit.spec) or self._take(unit, used)

    def _take(self, unit: DesiredUnit, used: set[int]) -> int:
        """Return the lowest free port of the node's range."""
        node, taken = self._desired.nodes[unit.node], self._taken[unit.node]
        for port in self._ranges[unit.node]:
            if port not in taken and port not in used:
                taken.add(port)
                return port
        raise PortsExhaustedError(
            f"no port of {node.ports} is free on {unit.node} for {unit.spec.slot}; "
            f"widen nodes.{unit.node}.ports or set {port_key(unit)}"
        )


def _group(unit: DesiredUnit) -> GroupSpec | None:
    return unit.spec.group if isinstance(unit.spec, WorkerSpec) else None


def port_key(unit: DesiredUnit) -> str:
    """Return the key of the files that says a unit's port."""
    if isinstance(unit.spec, GatewaySpec):
        return "gateway.port"
    return f"services.{unit.spec.slot.rsplit('-', 1)[0]}.port"


def owner_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every other configuration directory that this stack is running from."""
    owners = {unit.owner for unit in observed.units() if unit.alive and unit.owner not in (None, desired.owner)}
    return [
        f"stack {desired.stack} is already running from {owner}; "
        f"stop it there first: orchestrate --conf {owner} down {desired.stack}"
        for owner in sorted(str(owner) for owner in owners)
    ]


@dataclass(frozen=True, slots=True)
class AskedPort:
    """A port that the stack asks for and somebody has."""

    unit: DesiredUnit
    port: int
    holders: tuple[ObservedUnit, ...]
    """The living units of this stack that have it."""
    stranger: PortHolder | None
    """Who else has it."""

    def conflict(self) -> str:
        """Say who has it, and the way out."""
        key = port_key(self.unit)
        return f"{self.taken()}; stop it or choose another port: {key}={self.port + 1}"

    def taken(self) -> str:
        """Say who has it."""
        holder = _describe(self.stranger) if self.stranger is not None else f"unit {self.holders[0].id} of this stack"
        return f"port {self.port} on {self.unit.node}, wanted by {port_key(self.unit)}, is taken by {holder}"


def asked_ports(desired: Desired, observed: Observed, slots: Iterable[Slot]) -> dict[str, AskedPort]:
    """Return, by slot, the ports that the stack asks for and that are taken, where the node answered."""
    slots = tuple(slots)
    ours: dict[tuple[NodeName, int], list[ObservedUnit]] = {}
    for slot in slots:
        for unit in slot.alive:
            for held in ports_of(unit):
                ours.setdefault((unit.node, held), []).append(unit)
    found: dict[str, AskedPort] = {}
    for slot in slots:
        if not slot.wanted or (port := asked_port(slot.first.spec)) is None:
            continue
        node = observed.nodes.get(slot.first.node)
        if not isinstance(node, Reachable):
            continue
        holders = tuple(ours.get((slot.first.node, port), ()))
        holder = node.ports.get(port)
        known = holder is not None and holder.unit is not None and holder.unit[0] == desired.stack
        stranger = None if holder is None or known or (holder.unit is None and holders) else holder
        if holders or stranger is not None:
            found[slot.id] = AskedPort(slot.first, port, holders, stranger)
    return found


def _describe(holder: PortHolder) -> str:
    if holder.unit is not None:
        return f"unit {holder.unit[1]} of stack {holder.unit[0]}"
    if holder.pid is None:
        return "a process of another user"
    words = " ".join(holder.command.split())  # programs may be given as an argument, many lines long
    return f"pid {holder.pid} ({words if len(words) <= _LONGEST_COMMAND else words[:_LONGEST_COMMAND] + ' ...'})"
