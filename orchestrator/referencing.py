"""Pure: on which node of a group one process can answer the prompts by which the group is judged.

It holds the whole model for a while, beside everything that the same plan starts on its node.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.footprint import unit_memory
from orchestrator.groups import Slot
from orchestrator.memory import KnownMemory, free_memory, gib
from orchestrator.observed import Observed
from schemas.base import NodeName
from schemas.unit import WorkerSpec


class ReferencePlaces:
    """The memory that is left for such processes while a plan is made."""

    def __init__(self, desired: Desired, observed: Observed, starting: Iterable[Slot]) -> None:
        """`starting` are the slots in which the plan starts something."""
        self._desired = desired
        self._observed = observed
        self._starting = {slot.id: slot for slot in starting}
        self._left: dict[NodeName, float | None] | None = None
        """What is free on each node; counted when the first group asks, as most plans have none that does."""

    def place(self, slot: Slot) -> DesiredUnit | str:
        """Return a rank on whose node there is room now, before the slot itself starts; else why there is none."""
        whole = self._whole(slot)
        name = slot.first.spec.model.name if isinstance(slot.first.spec, WorkerSpec) else ""
        if whole is None:
            return f"how much memory the whole of {name} needs is unknown; declare models.{name}.memory_gib"
        # what the slot itself is going to take is still there
        own = _own(slot) if slot.id in self._starting else {}
        left = self._free()
        for unit in slot.wanted:
            free, later = left.get(unit.node), own.get(unit.node, 0.0)
            if free is not None and free + later >= whole:
                left[unit.node] = free - max(0.0, whole - later)
                return unit
        unknown = [unit.node for unit in slot.wanted if left.get(unit.node) is None]
        if unknown:
            nodes = ", ".join(dict.fromkeys(unknown))
            return f"how much memory is free on {nodes} is not known, and the whole of {name} needs {gib(whole)} GiB"
        return f"no node of it has the {gib(whole)} GiB free that the whole of {name} needs in one process"

    def _whole(self, slot: Slot) -> float | None:
        spec = slot.first.spec
        if not isinstance(spec, WorkerSpec):
            return None
        model = self._desired.models.get(spec.model.name)
        alone = spec.model_copy(update={"group": None, "max_batch": 1})
        declared = None if model is None else model.memory_gib
        return unit_memory(alone, declared, self._observed.facts.get(spec.model.name))[0]

    def _free(self) -> dict[NodeName, float | None]:
        if self._left is None:
            self._left = free_memory(self._desired, self._observed, KnownMemory(self._desired, self._observed))
            for slot in self._starting.values():
                for node, need in _own(slot).items():
                    free = self._left.get(node)
                    self._left[node] = None if free is None else free - need
        return self._left


def _own(slot: Slot) -> dict[NodeName, float]:
    """Return what the units of a slot need on each node, as far as it is known."""
    needs: dict[NodeName, float] = {}
    if slot.serves_model:
        for unit in slot.wanted:
            needs[unit.node] = needs.get(unit.node, 0.0) + (unit.memory_gib or 0.0)
    return needs
