"""Pure: the memory that a node's on-demand models share: what the services that always run leave of it.

Each of them must fit alone. Together they may need more: the least recently used ones make room for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.memory import with_estimates
from orchestrator.observed import Observed, Reachable
from schemas.base import NodeName
from schemas.on_demand import Allotment
from schemas.unit import EngineSpec, WorkerSpec, is_on_demand


def allotments(desired: Desired, observed: Observed) -> Mapping[NodeName, Allotment]:
    """Return what this stack leaves to the on-demand models of each node on which it has services, or had until now.

    Those of other stacks go by it as well. A service that always runs and whose need nobody knows counts for nothing,
    as everywhere in a plan.
    """
    desired = with_estimates(desired, observed.facts)
    found = {}
    models = {unit.node for unit in desired.units.values() if isinstance(unit.spec, WorkerSpec | EngineSpec)}
    left = {unit.node for unit in observed.units() if isinstance(unit.spec, WorkerSpec | EngineSpec)} - models
    always = _sums(unit for unit in desired.units.values() if not is_on_demand(unit.spec))
    needs: dict[NodeName, dict[str, float]] = {}
    for unit in _on_demand(desired):
        if isinstance(unit.spec, WorkerSpec) and unit.memory_gib and not unit.is_estimate:
            needs.setdefault(unit.node, {})[unit.spec.service] = unit.memory_gib
    for name in sorted(models):
        node = desired.nodes[name]
        aside = node.reserve_gib + always.get(name, 0.0)
        found[name] = Allotment(
            memory_gib=node.memory_gib,
            set_aside_gib=round(aside, 6),
            reserve_gib=node.reserve_gib,
            needs_gib=needs.get(name, {}),
        )
    return found | {name: Allotment(set_aside_gib=0.0) for name in sorted(left)}


def done_with(desired: Desired, observed: Observed) -> frozenset[NodeName]:
    """Return the nodes that answered and on which the stack, once it is as desired, runs no model."""
    models = {unit.node for unit in desired.units.values() if isinstance(unit.spec, WorkerSpec | EngineSpec)}
    seen = {name for name, node in observed.nodes.items() if isinstance(node, Reachable)}
    had = {unit.node for unit in observed.units()}
    return frozenset((seen if not desired.units else had & seen) - models)


def sharing_conflicts(desired: Desired, observed: Observed) -> Iterator[str]:
    """Yield a sentence for every on-demand model that declares more than is left.

    An estimate forbids nothing, and a copy that moved to the node never keeps anything from being mended.
    """
    always = _declared(desired)
    for unit in _on_demand(desired):
        left = None if unit.is_moved else _left(desired, observed, unit.node, always.get(unit.node, 0.0))
        if left is not None and unit.memory_gib is not None and not unit.is_estimate and unit.memory_gib > left:
            yield (
                f"{unit.spec.slot} on {unit.node} needs {unit.memory_gib:.1f} GiB when it is asked for, the services "
                f"that always run leave {max(left, 0.0):.1f}; move one of them or choose a smaller model"
            )


def _declared(desired: Desired) -> dict[NodeName, float]:
    """Return what the services that always run, and are at home there, declare for each node in GiB."""
    always = (unit for unit in desired.units.values() if not is_on_demand(unit.spec))
    return _sums(unit for unit in always if not (unit.is_estimate or unit.is_moved))


def _sums(units: Iterable[DesiredUnit]) -> dict[NodeName, float]:
    sums: dict[NodeName, float] = {}
    for unit in units:
        sums[unit.node] = sums.get(unit.node, 0.0) + (unit.memory_gib or 0.0)
    return sums


def _left(desired: Desired, observed: Observed, name: NodeName, always: float) -> float | None:
    node, seen = desired.nodes.get(name), observed.nodes.get(name)
    if node is None or not isinstance(seen, Reachable):
        return None
    total = node.memory_gib or seen.memory_gib
    return None if total is None else total - node.reserve_gib - always


def _on_demand(desired: Desired) -> Iterator[DesiredUnit]:
    return (unit for _, unit in sorted(desired.units.items()) if is_on_demand(unit.spec))
