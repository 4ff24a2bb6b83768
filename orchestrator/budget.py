"""Pure: which starts a node's memory allows, as far as it is known, and whose end they have to wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.expand import DesiredUnit
from orchestrator.groups import GroupId, Slot
from orchestrator.memory import KnownMemory, gib
from orchestrator.observed import ObservedUnit
from schemas.base import NodeName, UnitId
from schemas.unit import is_on_demand


class Budget:
    """The memory of every node while starts are granted one after the other."""

    def __init__(
        self, free: dict[NodeName, float | None], known: KnownMemory, idle: Iterable[ObservedUnit] = ()
    ) -> None:
        """`idle` are units that stay and whose models, loaded on demand, may be dropped: those to be dropped first."""
        self._free = free
        self._known = known
        self._idle = list(idle)
        self.borrowed: dict[GroupId, tuple[UnitId, ...]] = {}
        """The units of `idle` that each surge waits for."""
        self._offers: dict[NodeName, list[tuple[tuple[UnitId, ...], float | None]]] = {}
        """Units that stop in any case, and what there is when all of them have; None where it is not known how much."""
        self._missing: dict[GroupId, dict[NodeName, float]] = {}

    def surge(self, slot: Slot, first: list[ObservedUnit]) -> str:
        """Grant a start beside what runs, once `first` have stopped; returns why not."""
        if slot.is_gateway or not slot.serves_model:
            return ""
        needs = _needs(slot)
        is_unknown = any(need is None or self._free.get(node) is None for node, need in needs.items())
        if is_unknown and slot.first.update != "surge":
            return "its memory is unknown" if None in needs.values() else "free memory is unknown"
        gains = self._gains(first)
        short = {node: max(0.0, need - _known_gain(gains, node)) for node, need in _known(needs)}
        if any(not self._fits(node, need) for node, need in short.items()) and not self._borrow(slot, short):
            return "there is no memory for both"
        self._use(short)
        return ""

    def replace(self, slot: Slot, first: list[ObservedUnit]) -> bool:
        """Grant a start in place of what stops before it; False where more is needed than that and what is free."""
        gains = self._gains(first)
        missing: dict[NodeName, float] = {}
        for node, need in _known(_needs(slot)):
            gain = gains.get(node, 0.0)
            if gain is None:
                continue
            missing[node] = max(0.0, need - gain)
            if gain > need:
                stops = tuple(unit.id for unit in first if unit.node == node)
                self._offers.setdefault(node, []).append((stops, gain - need))
        if all(self._fits(node, need) for node, need in missing.items()):
            self._use(missing)
            return True
        self._missing[slot.id] = missing
        return False

    def offer(self, units: list[ObservedUnit]) -> None:
        """Count what stops without anything that starts in its place before that."""
        for unit in units:
            self._offers.setdefault(unit.node, []).append(((unit.id,), self._known.gain(unit)))

    def offer_idle(self) -> None:
        """Count what is left of the idle models, which are dropped where nothing else gives enough room."""
        for unit in self._idle:
            self._offers.setdefault(unit.node, []).append(((unit.id,), self._known.held(unit)))
        self._idle = []

    def make_room(self, slot: Slot) -> tuple[UnitId, ...] | None:
        """Grant a start from what is free and what others give; returns whom it must wait for, None where it lacks."""
        missing = self._missing.get(slot.id)
        if missing is None:
            missing = dict(_known(_needs(slot)))
        found: list[UnitId] = []
        taken: dict[NodeName, int] = {}
        for node, need in missing.items():
            if self._fits(node, need):
                continue
            have = self._free[node] or 0.0
            for count, (units, gain) in enumerate(self._offers.get(node, []), start=1):
                found += units
                taken[node] = count
                have = need if gain is None else have + gain
                if have >= need:
                    break
            if have < need:
                return None
        for node, count in taken.items():
            used = self._offers[node][:count]
            there = (self._free[node] or 0.0) + sum(gain or 0.0 for _, gain in used)
            # what is left over is there only after the same stops: it is an offer of all of them
            stops = tuple(unit for units, _ in used for unit in units)
            self._offers[node] = [(stops, max(0.0, there - missing[node])), *self._offers[node][count:]]
            self._free[node] = 0.0
        self._use({node: need for node, need in missing.items() if node not in taken})
        return tuple(dict.fromkeys(found))

    def shortage(self, slot: Slot) -> str:
        """Say what a start lacks."""
        for node, need in _known(_needs(slot)):
            free = self._free.get(node)
            if free is not None and need > free:
                return f"it needs {gib(need)} GiB, {node} has {gib(max(free, 0.0))} GiB free{self._known.way_out(node)}"
        return "there is no memory for it"

    def _borrow(self, slot: Slot, needs: Mapping[NodeName, float]) -> bool:
        """Drop as many idle models as `needs` lack on their nodes; False where all of them are not enough."""
        found: list[ObservedUnit] = []
        gained: dict[NodeName, float] = {}
        for node, need in needs.items():
            if self._fits(node, need):
                continue
            have = self._free[node] or 0.0
            for unit in self._idle:
                if have >= need:
                    break
                if unit.node != node:
                    continue
                found.append(unit)
                gain = self._known.held(unit)
                have = need if gain is None else have + gain
            if have < need:
                return False
            gained[node] = have
        self._free |= gained
        self._idle = [unit for unit in self._idle if unit not in found]
        self.borrowed[slot.id] = tuple(unit.id for unit in found)
        return True

    def _gains(self, units: list[ObservedUnit]) -> dict[NodeName, float | None]:
        gains: dict[NodeName, float | None] = {}
        for unit in units:
            before, more = gains.get(unit.node, 0.0), self._known.gain(unit)
            gains[unit.node] = None if before is None or more is None else before + more
        return gains

    def _fits(self, node: NodeName, need: float) -> bool:
        free = self._free.get(node)
        return free is None or need <= max(free, 0.0)

    def _use(self, needs: Mapping[NodeName, float]) -> None:
        for node, need in needs.items():
            free = self._free.get(node)
            if free is not None:
                self._free[node] = free - need


def _needs(slot: Slot) -> dict[NodeName, float | None]:
    """Return what a slot's units need on each node; None where it is not known."""
    needs: dict[NodeName, float | None] = {}
    for unit in slot.wanted:
        before, more = needs.get(unit.node, 0.0), unit.memory_gib if takes_memory(slot, unit) else 0.0
        needs[unit.node] = None if before is None or more is None else before + more
    return needs


def takes_memory(slot: Slot, unit: DesiredUnit) -> bool:
    """Tell whether a start of this unit needs memory: not of one that loads its model when it is asked for."""
    return slot.serves_model and not is_on_demand(unit.spec)


def _known(needs: Mapping[NodeName, float | None]) -> Iterator[tuple[NodeName, float]]:
    yield from ((node, need) for node, need in needs.items() if need is not None)


def _known_gain(gains: Mapping[NodeName, float | None], node: NodeName) -> float:
    gain = gains.get(node, 0.0)
    return float("inf") if gain is None else gain
