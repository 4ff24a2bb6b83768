"""Pure: how much memory units need, how much of it each node offers, and what is free of it now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.footprint import needed_memory
from orchestrator.observed import ModelFacts, Observed, ObservedUnit, Reachable
from schemas.base import ModelName, NodeName
from schemas.unit import EngineSpec, WorkerSpec, is_on_demand, slot_of

SHOWN_NODES = 8


def with_estimates(desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> Desired:
    """Return the desired state with an estimate for every unit that does not declare all and whose model is known."""
    if not facts:
        return desired
    units = {slot: _estimated(unit, desired, facts) for slot, unit in desired.units.items()}
    return replace(desired, units=units)


def _estimated(unit: DesiredUnit, desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> DesiredUnit:
    if unit.memory_gib is not None and not unit.is_estimate:
        return unit
    memory, is_estimate = needed_memory(unit.spec, desired.models, facts)
    return replace(unit, memory_gib=memory, is_estimate=is_estimate)


class KnownMemory:
    """What living units need, as far as the stack still says it."""

    def __init__(self, desired: Desired, observed: Observed) -> None:
        self._models = desired.models
        self._facts = observed.facts
        self._stack = desired.stack
        self._loaded = [unit for unit in observed.units() if unit.alive and _is_loaded_on_demand(unit)]

    def of(self, unit: ObservedUnit) -> float | None:
        """Return what a unit needs in GiB; 0 for one without a model, None where it is not known.

        One that loads on demand counts for nothing: it takes of what the others leave, and gives that back.
        """
        if unit.spec is None:
            return None
        if not isinstance(unit.spec, WorkerSpec | EngineSpec) or is_on_demand(unit.spec):
            return 0.0
        return needed_memory(unit.spec, self._models, self._facts)[0]

    def gain(self, unit: ObservedUnit) -> float | None:
        """Return what the end of a unit gives in GiB; None where it is not known, as of a model loaded on demand."""
        return None if _is_loaded_on_demand(unit) else self.of(unit)

    def held(self, unit: ObservedUnit) -> float | None:
        """Return what a model that is loaded on demand holds now, in GiB; 0 of any other unit, None where unknown."""
        if not unit.alive or not _is_loaded_on_demand(unit) or unit.spec is None:
            return 0.0
        return needed_memory(unit.spec, self._models, self._facts)[0]

    def idle(self) -> list[ObservedUnit]:
        """Return the units whose models, loaded on demand, may be dropped now: the least recently used ones first."""
        return sorted(
            (unit for unit in self._loaded if _is_idle(unit) and unit.port), key=lambda unit: (-_idle_s(unit), unit.id)
        )

    def way_out(self, node: NodeName) -> str:
        """Say how memory comes free that models loaded on demand hold on a node; empty where none does.

        Idle ones were not enough, and nothing in use is dropped without a person's word.
        """
        used = [slot_of(unit.id) for unit in self._loaded if unit.node == node and not _is_idle(unit)]
        if not used:
            return ""
        services = dict.fromkeys(slot.rpartition("-")[0] for slot in used)
        frees = f"orchestrate restart {self._stack} {' '.join(services)}"
        one = len(used) == 1
        return (
            f"; {', '.join(used)} use{'s' if one else ''} {'a model' if one else 'models'} loaded on demand there: "
            f"apply again when {'it is' if one else 'they are'} idle, or {frees} frees it at once"
        )


def _is_loaded_on_demand(unit: ObservedUnit) -> bool:
    return unit.demand is not None and unit.demand.phase != "cold"


def _is_idle(unit: ObservedUnit) -> bool:
    seen = unit.demand
    return seen is not None and (
        seen.phase == "unloading" or (seen.phase == "ready" and seen.report.idle_s is not None)
    )


def _idle_s(unit: ObservedUnit) -> float:
    """Return for how long a model was not used; one that is on its way out gives its memory soonest."""
    return math.inf if unit.demand is None or unit.demand.report.idle_s is None else unit.demand.report.idle_s


def free_memory(desired: Desired, observed: Observed, known: KnownMemory) -> dict[NodeName, float | None]:
    """Return what is free on each node that answered, in GiB; None where it does not say.

    What is available less what is kept free, and less what living units that still load will take: how much of that
    they have taken already is not known. Of a node that declares its memory never more than living units and the models
    that are loaded on demand leave of that.
    """
    free: dict[NodeName, float | None] = {}
    for name, node in observed.nodes.items():
        if isinstance(node, Reachable):
            reserve = desired.nodes[name].reserve_gib if name in desired.nodes else 0.0
            available = node.memory_available_gib
            free[name] = None if available is None else available - reserve
    alive = [unit for unit in observed.units() if unit.alive]
    loaded = {_whole(unit) for unit in alive if unit.ready}
    for unit in alive:
        now = free[unit.node]
        if now is None or unit.silent_s or _whole(unit) in loaded:
            continue
        free[unit.node] = now - (known.of(unit) or 0.0)
    used: dict[NodeName, float] = {}
    for unit in alive:
        used[unit.node] = used.get(unit.node, 0.0) + (known.of(unit) or 0.0) + (known.held(unit) or 0.0)
    for name, declared in desired.nodes.items():
        if declared.memory_gib is not None and name in free:
            left, now = declared.memory_gib - declared.reserve_gib - used.get(name, 0.0), free[name]
            free[name] = left if now is None else min(now, left)
    return free


def _whole(unit: ObservedUnit) -> tuple[str | None, ...]:
    """Return what has loaded when one of it is ready: all ranks of a launch, else the unit on its node."""
    if isinstance(unit.spec, WorkerSpec) and unit.spec.group is not None:
        return (slot_of(unit.id).rpartition(".")[0], unit.launch)
    return (unit.id, unit.node, unit.launch)


def memory_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every node whose models declare more memory than it has.

    An estimate forbids nothing, and a copy that moved to the node starts there only where it fits.
    """
    declared = {
        slot: replace(unit, memory_gib=None) if unit.is_estimate or unit.is_moved else unit
        for slot, unit in desired.units.items()
    }
    desired = replace(desired, units=declared)
    return [
        f"the models on {name} need {needed:.1f} GiB, it offers {capacity:.1f}; "
        "move a service to another node or choose a smaller model"
        for name, needed, capacity, _ in _memory_use(desired, observed)
        if capacity is not None and needed > capacity
    ]


def memory_notes(desired: Desired, observed: Observed) -> Iterator[str]:
    """Yield how much of each node's memory the stack's models need, for the nodes that have to do with it."""
    busy = {unit.node for unit in observed.units() if unit.alive}
    waiting: dict[NodeName, list[float | None]] = {}
    for unit in desired.units.values():
        if is_on_demand(unit.spec):
            waiting.setdefault(unit.node, []).append(unit.memory_gib)
    notes = [
        f"{name} {'about ' if is_estimate else ''}{gib(needed)} of {'?' if capacity is None else gib(capacity)} GiB"
        f"{_on_demand_note(waiting[name]) if name in waiting else ''}"
        for name, needed, capacity, is_estimate in _memory_use(desired, observed)
        if needed or name in waiting or (capacity is not None and name in busy)
    ]
    yield from notes[:SHOWN_NODES]
    if len(notes) > SHOWN_NODES:
        yield f"and {len(notes) - SHOWN_NODES} more nodes"


def _on_demand_note(needs: list[float | None]) -> str:
    """Return the most that one of a node's on-demand models takes of what is left."""
    known = [need for need in needs if need is not None]
    return f" and {len(needs)} on demand, " + (f"the largest {gib(max(known))}" if known else "how large is not known")


def gib(amount: float) -> str:
    """Write an amount of memory as plans show it: `38`, `0.5`."""
    return f"{amount:.1f}".removesuffix(".0")


def _memory_use(desired: Desired, observed: Observed) -> Iterator[tuple[NodeName, float, float | None, bool]]:
    needed: dict[NodeName, float] = {}
    estimated: set[NodeName] = set()
    for unit in desired.units.values():
        if is_on_demand(unit.spec):
            continue
        needed[unit.node] = needed.get(unit.node, 0.0) + (unit.memory_gib or 0.0)
        if unit.is_estimate:
            estimated.add(unit.node)
    for name, node in sorted(desired.nodes.items()):
        seen = observed.nodes.get(name)
        if isinstance(seen, Reachable):
            total = node.memory_gib or seen.memory_gib
            capacity = None if total is None else total - node.reserve_gib
            yield name, needed.get(name, 0.0), capacity, name in estimated
