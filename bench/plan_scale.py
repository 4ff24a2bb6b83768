"""I/O: how long planning takes and how much memory it needs, for fleets of 10, 100 and 1,000 nodes with 5 units each.

Three plans for each, from the composed stack: a first start, nothing to do, and a change of every unit of a model. Half
of the nodes declare their memory, and one of each node's services loads its model on demand. No network, no processes.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import tracemalloc
from dataclasses import replace

from orchestrator.expand import Desired, expand
from orchestrator.observed import Observed, ObservedUnit, OnDemandSeen, Reachable
from orchestrator.plan import AwaitReady, Plan, Publish, Rewire, Start
from orchestrator.reconcile import reconcile
from orchestrator.simulate import report
from orchestrator.uncollected import uncollected
from schemas.base import NodeName, UnitId
from schemas.on_demand import OnDemandReport
from schemas.routes import Instance, Routes
from schemas.stack import Stack
from schemas.unit import is_on_demand

SIZES = (10, 100, 1_000)
SERVICES_PER_NODE = 5
MIB = 1 << 20


def fleet(nodes: int, max_batch: int = 8) -> Stack:
    """Return a stack of so many nodes, each with four single units and one rank of a group with its neighbour."""
    names = [f"n{number:04d}" for number in range(nodes)]
    services: dict[str, object] = {
        f"s{number}-{name}": {"model": "small", "nodes": [name], "max_batch": max_batch, "start": start}
        for name in names
        for number, start in enumerate(["always"] * (SERVICES_PER_NODE - 2) + ["on-demand"])
    }
    for first, second in zip(names[::2], names[1::2], strict=True):
        services[f"group-{first}"] = {
            "model": "large",
            "nodes": [first, second],
            "sharding": {"backend": "ring", "strategy": "tensor", "canary": "off"},
            "max_batch": max_batch,
        }
    tree = {
        "stack": "fleet",
        "nodes": {
            name: {
                "reach": "ssh",
                "host": f"{name}.lan",
                "addresses": {"lan": f"10.0.{number // 250}.{number % 250}"},
                **({"memory_gib": 128.0, "reserve_gib": 8.0} if number % 2 else {}),
            }
            for number, name in enumerate(names)
        },
        "models": {
            "small": {"source": "path:/models/small", "memory_gib": 4.0},
            "large": {"source": "path:/models/large", "memory_gib": 64.0},
        },
        "services": services,
        "roles": {"chat": {"endpoints": {name: {"service": name} for name in services}}},
        "gateway": {"node": names[0]},
    }
    return Stack.from_json(json.dumps(tree))


def bare(desired: Desired) -> Observed:
    """Return a fleet on which nothing runs."""
    models = frozenset({(name, "mlx") for name in desired.models})
    node = Reachable(models=models, memory_gib=128.0, memory_available_gib=120.0)  # type: ignore[arg-type]
    return Observed(dict.fromkeys(desired.nodes, node))


def running(desired: Desired) -> Observed:
    """Return the fleet after its first plan, written down at once instead of action by action."""
    empty = bare(desired)
    units: dict[NodeName, dict[UnitId, ObservedUnit]] = {name: {} for name in desired.nodes}
    ready: set[UnitId] = set()
    cold = OnDemandSeen("cold", OnDemandReport(since_s=0.0))
    instances: list[Instance] = []
    for action in reconcile(desired, empty).actions:
        match action:
            case Start(id=launch, units=placed):
                for each in placed:
                    units[each.unit.node][each.unit.id] = ObservedUnit(
                        each.unit.id,
                        each.unit.node,
                        alive=True,
                        spec=each.unit.spec,
                        port=each.port,
                        owner=desired.owner,
                        launch=launch,
                        link_port=each.link_port,
                        control_port=each.control_port,
                        demand=cold if is_on_demand(each.unit.spec) else None,
                    )
            case AwaitReady(unit=unit, others=others):
                ready |= {unit, *(other for _, other in others)}
            case Publish(instance=instance):
                instances.append(instance)
            case Rewire():
                pass
            case _:
                raise TypeError(f"a first start needs no {action.id}")
    nodes = {
        name: replace(
            node,
            units={unit: replace(seen, ready=unit in ready) for unit, seen in units[name].items()},
            memory_available_gib=60.0,
        )
        for name, node in empty.nodes.items()
        if isinstance(node, Reachable)
    }
    routes = Routes(stack=desired.stack, generation=1, instances=tuple(instances))
    return Observed(nodes, routes, report(desired))


def measure(stack: Stack, world: Observed) -> tuple[float, float]:
    """Return the seconds of one processor and, from a second run, the MiB at the peak that planning takes."""
    gc.collect()
    began = time.process_time()
    plan(stack, world)
    seconds = time.process_time() - began
    tracemalloc.start()
    plan(stack, world)
    peak = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    return seconds, peak


def plan(stack: Stack, world: Observed) -> Plan:
    """Plan as the commands do."""
    with uncollected():
        return reconcile(expand(stack, "/conf"), world)


def main() -> int:
    """Print one line a size: seconds and MiB of each plan, and the time a node takes compared with the first line."""
    print(
        f"{'nodes':>6} {'units':>6}   {'first start':>20}   {'nothing to do':>20}   {'replace all':>20}   time a node"
    )
    base: float | None = None
    for size in SIZES:
        stack, newer = fleet(size), fleet(size, max_batch=4)
        desired = expand(stack, "/conf")
        world = running(desired)
        empty = bare(desired)
        results = [
            measure(stack, empty),
            measure(stack, world),
            measure(newer, world),
        ]
        per_unit = sum(seconds for seconds, _ in results) / size
        base = base or per_unit
        shown = "   ".join(f"{f'{seconds:.3f} s {peak:5.1f} MiB':>20}" for seconds, peak in results)
        print(f"{size:>6} {len(desired.units):>6}   {shown}   {per_unit / base:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
