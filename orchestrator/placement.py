"""Pure: which port and which memory a unit gets on its node, and what cannot be had."""

from __future__ import annotations

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.observed import Observed, PortHolder, Reachable, Unreachable
from schemas.base import NodeName, UnitId
from schemas.unit import GatewaySpec, slot_of


class PortsExhaustedError(Exception):
    """A node has no free port left in its range; carries the sentence that the plan shows."""


class Placement:
    """The free ports and memory of every node, used up as units are placed in a fixed order."""

    def __init__(self, desired: Desired, observed: Observed) -> None:
        self._desired = desired
        self._taken: dict[NodeName, set[int]] = {}
        self._free_gib: dict[NodeName, float | None] = {}
        for name, node in observed.nodes.items():
            if isinstance(node, Reachable):
                ours = {unit.port for unit in node.units.values() if unit.alive and unit.port is not None}
                wanted = {unit.spec.port for unit in desired.units.values() if unit.node == name and unit.spec.port}
                self._taken[name] = {*node.ports, *ours, *wanted}
                reserve = desired.nodes[name].reserve_gib if name in desired.nodes else 0.0
                available = node.memory_available_gib
                self._free_gib[name] = None if available is None else available - reserve

    def take_port(self, unit: DesiredUnit) -> int:
        """Return the port that a unit will listen on: its own, or the lowest free one of the node's range."""
        if unit.spec.port is not None:
            return unit.spec.port
        node = self._desired.nodes[unit.node]
        for port in node.port_range():
            if port not in self._taken[unit.node]:
                self._taken[unit.node].add(port)
                return port
        raise PortsExhaustedError(
            f"no port of {node.ports} is free on {unit.node} for {unit.spec.slot}; "
            f"widen nodes.{unit.node}.ports or set services.{_service(unit)}.port"
        )

    def take_memory(self, unit: DesiredUnit) -> bool:
        """Count a unit that is started in any case; tells whether its memory is free now, as far as is known."""
        free = self._free_gib[unit.node]
        if free is None or unit.memory_gib is None:
            return True
        self._free_gib[unit.node] = free - unit.memory_gib
        return unit.memory_gib <= free

    def fits_beside(self, unit: DesiredUnit) -> bool:
        """Tell whether a unit fits next to everything that runs, and count it if so; unknown does not fit."""
        if isinstance(unit.spec, GatewaySpec):
            return True
        free = self._free_gib[unit.node]
        if free is None or unit.memory_gib is None or unit.memory_gib > free:
            return False
        self._free_gib[unit.node] = free - unit.memory_gib
        return True


def _service(unit: DesiredUnit) -> str:
    return unit.spec.slot.rsplit("-", 1)[0]


def owner_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every other configuration directory that this stack is running from."""
    owners = {unit.owner for unit in observed.units() if unit.alive and unit.owner not in (None, desired.owner)}
    return [
        f"stack {desired.stack} is already running from {owner}; "
        f"stop it there first: orchestrate --conf {owner} down {desired.stack}"
        for owner in sorted(str(owner) for owner in owners)
    ]


def port_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every port that the stack asks for and somebody else holds."""
    found = []
    for unit in desired.units.values():
        node = observed.nodes.get(unit.node)
        if not isinstance(node, Reachable) or unit.spec.port is None or unit.spec.port not in node.ports:
            continue
        holder = node.ports[unit.spec.port]
        if not _gives_way(holder, unit, desired, observed):
            key = "gateway.port" if isinstance(unit.spec, GatewaySpec) else f"services.{_service(unit)}.port"
            found.append(
                f"port {unit.spec.port} on {unit.node}, wanted by {key}, is taken by {_describe(holder)}; "
                f"stop it or choose another port: {key}={unit.spec.port + 1}"
            )
    return found


def stays(unit: UnitId, node: NodeName, desired: Desired, observed: Observed) -> bool:
    """Tell whether a living unit is kept: it is the wanted one, or the node of its successor did not answer."""
    wanted = desired.units.get(slot_of(unit))
    if wanted is None:
        return False
    return (wanted.id == unit and wanted.node == node) or isinstance(observed.nodes.get(wanted.node), Unreachable)


def _gives_way(holder: PortHolder, wanted: DesiredUnit, desired: Desired, observed: Observed) -> bool:
    """Tell whether a port's holder is the unit that wants it, or one that this plan stops."""
    if holder.unit is None or holder.unit[0] != desired.stack:
        return False
    unit = holder.unit[1]
    return slot_of(unit) == wanted.spec.slot or not stays(unit, wanted.node, desired, observed)


def _describe(holder: PortHolder) -> str:
    if holder.unit is not None:
        return f"unit {holder.unit[1]} of stack {holder.unit[0]}"
    return f"pid {holder.pid} ({holder.command})" if holder.pid is not None else "a process of another user"


def memory_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every node whose models need more memory than it has."""
    found = []
    for name, needed, capacity in memory_use(desired, observed):
        if capacity is not None and needed > capacity:
            found.append(
                f"the models on {name} need {needed:.1f} GiB, it offers {capacity:.1f}; "
                "move a service to another node or choose a smaller model"
            )
    return found


def memory_use(desired: Desired, observed: Observed) -> list[tuple[NodeName, float, float | None]]:
    """Return (node, GiB that its models need, GiB that it offers or None) for every node that answered."""
    use = []
    for name, node in sorted(desired.nodes.items()):
        seen = observed.nodes.get(name)
        if isinstance(seen, Reachable):
            needed = sum(unit.memory_gib or 0.0 for unit in desired.units.values() if unit.node == name)
            total = node.memory_gib or seen.memory_gib
            use.append((name, needed, None if total is None else total - node.reserve_gib))
    return use
