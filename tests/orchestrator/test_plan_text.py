"""The text of plans, as people read it: one golden file for each kind of change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.expand import Desired, expand, nothing
from orchestrator.observed import Observed, ObservedUnit, PortHolder, Reachable, Unreachable
from orchestrator.plan import Plan, plan_data, render
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from schemas.base import NodeName, StackName, UnitId
from tests.properties.test_planner import execution_order
from tests.properties.worlds import OWNER, losing, stack_of

CODER = {"model": "m1", "nodes": ["alpha"]}


def desired(gateway_port: int = 8000, aliases: list[str] | None = None, **services: dict[str, object]) -> Desired:
    return expand(stack_of(services or {"coder": CODER}, gateway_port, aliases), OWNER)


def empty(**nodes: Reachable | Unreachable) -> Observed:
    seen = {NodeName(name): Reachable(memory_gib=16.0, memory_available_gib=12.0) for name in ("alpha", "beta")}
    return Observed({**seen, **{NodeName(name): node for name, node in nodes.items()}})


def running(wanted: Desired, world: Observed | None = None) -> Observed:
    """Return the world after a plan for `wanted` was applied to an empty cluster."""
    world = world or empty()
    for action in execution_order(reconcile(wanted, world), seed=1):
        world = apply_action(action, wanted, world)
    return world


def on_alpha(world: Observed, **changes: object) -> Observed:
    alpha = world.nodes[NodeName("alpha")]
    return replace(world, nodes={**world.nodes, NodeName("alpha"): replace(alpha, **changes)})


def unit(world: Observed, slot: str) -> ObservedUnit:
    return next(unit for unit in world.units() if unit.slot == slot and unit.alive)


def ended_badly(wanted: Desired) -> Observed:
    world = running(wanted)
    return losing(world, unit(world, "coder-0.0").id)


def not_ready(wanted: Desired) -> Observed:
    world = running(wanted)
    loading = replace(unit(world, "coder-0.0"), ready=False)
    return on_alpha(world, units={**world.nodes[NodeName("alpha")].units, loading.id: loading})


def with_load_time(world: Observed) -> Observed:
    old = replace(unit(world, "coder-0.0"), load_s=41.6)
    return on_alpha(world, units={**world.nodes[NodeName("alpha")].units, old.id: old})


def stranger(port: int) -> Observed:
    return on_alpha(empty(), ports={port: PortHolder(4242, "python3 -m http.server")})


def other_stack(port: int) -> Observed:
    holder = PortHolder(77, "python", (StackName("other"), UnitId("gateway-0.0@abc")))
    return on_alpha(empty(), ports={port: holder})


def exhausted() -> Observed:
    return on_alpha(empty(), ports={port: PortHolder(1, "x") for port in range(18100, 18200)})


BIG = {"model": "m9", "nodes": ["alpha"]}
SWAPPED = {**CODER, "update": "swap", "max_batch": 4}
CASES: dict[str, tuple[Desired, Observed]] = {
    "first_start": (desired(), empty()),
    "no_changes": (desired(), running(desired())),
    "explicit_port_surge": (desired(coder={**CODER, "port": 18123}), running(desired())),
    "swap_with_known_load_time": (desired(coder=SWAPPED), with_load_time(running(desired()))),
    "swap_for_lack_of_memory": (
        desired(coder={**CODER, "max_batch": 4}),
        on_alpha(running(desired()), memory_available_gib=1.0),
    ),
    "killed_unit": (desired(), ended_badly(desired())),
    "still_loading": (desired(), not_ready(desired())),
    "service_added_and_removed": (desired(titan={**CODER, "nodes": ["beta"]}), running(desired())),
    "service_moved": (desired(coder={**CODER, "nodes": ["beta"]}), running(desired())),
    "routing_only": (desired(aliases=["coder"]), running(desired())),
    "gateway_port": (desired(gateway_port=8001), running(desired())),
    "unreachable_node": (desired(coder={**CODER, "nodes": ["beta"]}), empty(beta=Unreachable("timed out after 10 s"))),
    "down": (nothing(StackName("world"), OWNER, desired().nodes), running(desired())),
    "port_of_a_stranger": (desired(), stranger(8000)),
    "port_of_another_stack": (desired(), other_stack(8000)),
    "ports_exhausted": (desired(), exhausted()),
    "does_not_fit": (desired(coder=BIG), empty()),
    "other_directory": (replace(desired(), owner="/elsewhere/conf"), running(desired())),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_plan_text(name, golden):
    plan = reconcile(*CASES[name])
    golden.check(f"plans/{name}.txt", render(plan, "Stack world at 4e1c9d2 -> generation 18") + "\n")


def _kinds(plan: Plan) -> list[str]:
    return [type(action).__name__ for action in execution_order(plan, seed=0)]


def test_a_killed_unit_needs_exactly_one_start():
    plan = reconcile(*CASES["killed_unit"])
    assert [change.kind for change in plan.changes] == ["start"]
    assert _kinds(plan) == ["Sync", "Start", "AwaitReady", "Publish"] or _kinds(plan) == [
        "Start",
        "AwaitReady",
        "Publish",
    ]


def test_a_surge_waits_for_ready_before_it_drains():
    assert _kinds(reconcile(*CASES["explicit_port_surge"])) == [
        "Start", "AwaitReady", "Publish", "Drain", "Stop",
    ]  # fmt: skip


def test_a_swap_drains_and_stops_before_it_starts():
    assert _kinds(reconcile(*CASES["swap_with_known_load_time"])) == [
        "Drain", "Stop", "Start", "AwaitReady", "Publish",
    ]  # fmt: skip


def test_a_gateway_is_replaced_by_one_that_listens_beside_it():
    assert _kinds(reconcile(*CASES["gateway_port"])) == ["Start", "AwaitReady", "Stop"]


def test_down_stops_the_gateway_before_the_workers():
    order = execution_order(reconcile(*CASES["down"]), seed=3)
    assert [action.unit.split("-")[0] for action in order] == ["gateway", "coder"]


def test_the_json_of_a_plan_ends_with_a_summary_and_names_every_action():
    plan = reconcile(*CASES["first_start"])
    lines = list(plan_data(plan))
    assert lines[-1]["type"] == "plan"
    assert lines[-1]["fingerprint"] == plan.fingerprint()
    assert [line["id"] for line in lines if line["type"] == "action"] == [action.id for action in plan.actions]


def test_a_fingerprint_differs_when_anything_that_would_be_done_differs():
    prints = {name: reconcile(*case).fingerprint() for name, case in CASES.items()}
    same = (
        {"first_start", "port_of_a_stranger", "port_of_another_stack"},
        {"does_not_fit", "ports_exhausted"},
        {"no_changes", "other_directory"},
    )
    assert len(set(prints.values())) == len(prints) - sum(len(group) - 1 for group in same)
