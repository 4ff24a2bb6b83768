"""Services whose models are loaded when they are asked for: how they are planned, started and shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.commands import Demand, worker_argv
from orchestrator.expand import Desired
from orchestrator.observed import Observed, ObservedUnit, OnDemandSeen, Reachable
from orchestrator.plan import ActionId, Plan, Start, Unload, render
from orchestrator.reconcile import reconcile
from orchestrator.sharing import allotments, done_with
from orchestrator.simulate import apply_action
from orchestrator.status import StackStatus, status_data, status_lines
from schemas.base import NodeName, SlotId
from schemas.on_demand import Allotment, OnDemandReport
from schemas.unit import WorkerSpec, slot_of
from tests.conftest import Golden
from tests.orchestrator.test_plan_text import CODER, desired, empty, running
from tests.properties.test_planner import execution_order

ALPHA = NodeName("alpha")
DRAFT = {"model": "m4", "nodes": ["alpha"], "start": "on-demand", "idle_stop_s": 600.0}
"""Needs 9 GiB; the coder beside it, which always runs, 3 of the node's 16."""
WRITER = {"model": "m5", "nodes": ["alpha"], "start": "on-demand"}
"""Needs 11 GiB: it fits beside the coder, and not together with the draft."""
HEADING = "Stack world at 4e1c9d2 -> generation 18"


def wanted(**more: dict[str, object]) -> Desired:
    return desired(**{"coder": CODER, "draft": DRAFT, "writer": WRITER, **more})


def roomy() -> Observed:
    return empty(alpha=Reachable(memory_gib=16.0, memory_available_gib=15.0))


def test_a_plan_counts_what_always_runs_and_says_what_the_others_share(golden: Golden) -> None:
    plan = reconcile(wanted(), roomy())
    golden.check("plans/on_demand.txt", render(plan, HEADING))
    assert not plan.conflicts


def test_each_must_fit_beside_what_always_runs() -> None:
    plan = reconcile(desired(coder={**CODER, "model": "m3"}, draft=DRAFT, writer=WRITER), roomy())
    (conflict,) = plan.conflicts
    assert conflict.startswith("writer-0.0 on alpha needs 11.0 GiB when it is asked for, ")
    assert "leave 9.0" in conflict


def test_a_cold_unit_is_as_it_should_be_and_another_service_replaces_none() -> None:
    world = running(wanted(), roomy())
    assert reconcile(wanted(), world).is_empty
    plan = reconcile(wanted(small={"model": "m0", "nodes": ["alpha"]}), world)
    assert not plan.conflicts
    assert [action.first.unit.spec.slot for action in plan.actions if isinstance(action, Start)] == ["small-0.0"]
    assert allotments(wanted(), world)[ALPHA].set_aside_gib == 3.0
    assert allotments(wanted(small={"model": "m0", "nodes": ["alpha"]}), world)[ALPHA].set_aside_gib == 4.0


def test_a_start_waits_for_no_memory_that_it_does_not_take() -> None:
    full = empty(alpha=Reachable(memory_gib=16.0, memory_available_gib=3.5))
    plan = reconcile(wanted(), full)
    starts = [action.first.unit.spec.slot for action in plan.actions if isinstance(action, Start)]
    assert {"coder-0.0", "draft-0.0", "writer-0.0"} <= set(starts)


def test_starting_it_takes_no_memory_in_the_simulation() -> None:
    world = running(wanted(), roomy())
    alpha = world.nodes[ALPHA]
    assert isinstance(alpha, Reachable)
    assert alpha.memory_available_gib == 12.0
    plan = reconcile(desired(coder=CODER), world)
    for action in plan.actions:
        world = apply_action(action, desired(coder=CODER), world)
    after = world.nodes[ALPHA]
    assert isinstance(after, Reachable)
    assert after.memory_available_gib == 12.0


def test_what_a_node_leaves_to_them_is_its_memory_less_its_reserve_and_what_always_runs() -> None:
    state = wanted()
    node = state.nodes[ALPHA].model_copy(update={"reserve_gib": 2.0})
    state = replace(state, nodes={**state.nodes, ALPHA: node})
    needs = {"draft": 9.0, "writer": 11.0}
    expected = Allotment(memory_gib=16.0, set_aside_gib=5.0, reserve_gib=2.0, needs_gib=needs)
    assert allotments(state, roomy()) == {ALPHA: expected}


def test_a_stack_tells_the_on_demand_models_of_others_what_it_takes_and_when_it_takes_nothing_more() -> None:
    state = desired(coder=CODER)
    assert allotments(state, roomy())[ALPHA].set_aside_gib == 3.0
    gone = replace(state, units={})
    assert allotments(gone, running(state, roomy())) == {ALPHA: Allotment(set_aside_gib=0.0)}
    assert allotments(gone, roomy()) == {}
    assert done_with(gone, roomy()) == {ALPHA, NodeName("beta")}
    assert done_with(state, running(state, roomy())) == frozenset()


def test_when_it_is_loaded_is_part_of_what_a_unit_is() -> None:
    def unit_of(**changes: object) -> str:
        return desired(draft={**DRAFT, **changes}).units[SlotId("draft-0.0")].id

    assert len({unit_of(), unit_of(start="always", idle_stop_s=None), unit_of(idle_stop_s=60.0)}) == 3


def test_the_command_names_the_room_the_budget_and_the_need() -> None:
    spec = desired(draft=DRAFT).units[SlotId("draft-0.0")].spec
    assert isinstance(spec, WorkerSpec)
    demand = Demand("/state/on-demand", "/state/on-demand/world.json")
    argv = worker_argv("python", spec, "/models/m4", 18101, None, demand)
    told = argv[argv.index("--on-demand") :]
    assert told == [
        "--on-demand", "--service", "draft", "--room", "/state/on-demand",
        "--budget", "/state/on-demand/world.json", "--idle-stop-s", "600",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "report", "state", "words"),
    [
        ("cold", OnDemandReport(since_s=300.0), "cold", "on demand, not in memory for 5 min"),
        ("loading", OnDemandReport(since_s=3.0, eta_s=12.0), "loading", "on demand, loading, about 12 s left"),
        ("ready", OnDemandReport(since_s=9.0, idle_s=7.0), "ready", "on demand, idle for 7 s"),
        ("ready", OnDemandReport(since_s=9.0), "ready", "on demand, in use"),
        ("unloading", OnDemandReport(since_s=0.1), "cold", "on demand, unloading"),
        ("cold", OnDemandReport(since_s=4.0, failure="no config.json"), "cold", "last load failed: no config.json"),
    ],
)
def test_status_says_how_it_is_with_the_model(phase: str, report: OnDemandReport, state: str, words: str) -> None:
    unit = wanted().units[SlotId("draft-0.0")]
    demand = OnDemandSeen(phase, report)
    seen = ObservedUnit(unit.id, ALPHA, alive=True, ready=True, spec=unit.spec, pid=5, started_at=0.0, demand=demand)
    status = StackStatus("world", "/conf", Observed({ALPHA: Reachable({unit.id: seen})}), now=10.0)
    (line,) = [line for line in status_lines(status) if "draft-0.0" in line]
    assert line.split()[:2] == ["alpha/draft-0.0", state]
    assert words in line
    data = next(data for data in status_data(status) if data["type"] == "unit")
    assert (data["state"], data["ready"], data["on_demand"]["phase"]) == (state, True, phase)


def loaded_unit(world: Observed, slot: str) -> ObservedUnit:
    return next(unit for unit in world.units() if unit.slot == slot and unit.alive)


def loaded(world: Observed, slot: str, idle_s: float | None = 7.0) -> Observed:
    """Return a world in which a model that is loaded on demand is in memory; it is in use where `idle_s` is None."""
    alpha = world.nodes[ALPHA]
    assert isinstance(alpha, Reachable)
    held = replace(loaded_unit(world, slot), demand=OnDemandSeen("ready", OnDemandReport(since_s=9.0, idle_s=idle_s)))
    left = replace(alpha, units={**alpha.units, held.id: held}, memory_available_gib=3.0)
    return replace(world, nodes={**world.nodes, ALPHA: left})


def with_free(world: Observed, free_gib: float) -> Observed:
    alpha = world.nodes[ALPHA]
    assert isinstance(alpha, Reachable)
    return replace(world, nodes={**world.nodes, ALPHA: replace(alpha, memory_available_gib=free_gib)})


def test_a_loaded_model_makes_room_for_itself_when_it_is_to_run_always() -> None:
    world = loaded(running(wanted(), roomy()), "draft-0.0")
    plan = reconcile(desired(coder=CODER, draft={"model": "m4", "nodes": ["alpha"]}), world)
    assert not any(change.kind == "defer" for change in plan.changes)
    assert [action.first.unit.spec.slot for action in plan.actions if isinstance(action, Start)] == ["draft-0.0"]


def starts(plan: Plan) -> dict[str, Start]:
    return {action.first.unit.spec.slot: action for action in plan.actions if isinstance(action, Start)}


def unloads(plan: Plan) -> list[str]:
    return [slot_of(action.unit) for action in plan.actions if isinstance(action, Unload)]


SMALL = {"model": "m2", "nodes": ["alpha"]}
"""Needs 5 GiB."""


def wide(**more: dict[str, object]) -> Desired:
    """Return what is wanted, with a node on which each of the models on demand fits beside all that always runs."""
    state = wanted(**more)
    node = state.nodes[ALPHA].model_copy(update={"memory_gib": 24.0})
    return replace(state, nodes={**state.nodes, ALPHA: node})


def test_an_idle_model_makes_room_for_what_is_to_run_always(golden: Golden) -> None:
    wish = wide(small=SMALL)
    world = loaded(running(wide(), roomy()), "draft-0.0")
    plan = reconcile(wish, world)
    golden.check("plans/unload.txt", render(plan, HEADING))
    (unload,) = [action for action in plan.actions if isinstance(action, Unload)]
    assert unload.id in starts(plan)["small-0.0"].after
    for action in execution_order(plan, seed=3):
        world = apply_action(action, wish, world)
    assert reconcile(wish, world).is_empty
    alpha = world.nodes[ALPHA]
    assert isinstance(alpha, Reachable)
    assert alpha.memory_available_gib == 3.0 + 9.0 - 5.0


def test_no_model_is_dropped_where_there_is_room_without_it() -> None:
    world = loaded(running(wide(), roomy()), "draft-0.0")
    plan = reconcile(wide(small={"model": "m0", "nodes": ["alpha"]}), world)
    assert "small-0.0" in starts(plan)
    assert unloads(plan) == []


def test_the_least_recently_used_ones_go_first_and_not_one_more() -> None:
    more = {"third": {"model": "m2", "nodes": ["alpha"], "start": "on-demand"}}
    world = running(desired(draft=DRAFT, **more), roomy())
    world = loaded(loaded(world, "draft-0.0", idle_s=5.0), "third-0.0", idle_s=50.0)
    for need, expected in (("m0", []), ("m2", ["third-0.0"]), ("m3", ["third-0.0", "draft-0.0"])):
        wish = desired(draft=DRAFT, **more, new={"model": need, "nodes": ["alpha"]})
        plan = reconcile(wish, with_free(world, 1.0))
        assert not plan.conflicts
        assert (need, unloads(plan)) == (need, expected)
        assert "new-0.0" in starts(plan)


def test_a_replacement_runs_beside_the_old_one_in_the_memory_of_an_idle_model() -> None:
    world = loaded(running(wide(), roomy()), "draft-0.0")
    plan = reconcile(wide(coder={**CODER, "max_batch": 4}), with_free(world, 1.0))
    (change,) = [change for change in plan.changes if change.kind == "replace"]
    assert change.how == "surge"
    assert unloads(plan) == ["draft-0.0"]
    assert ActionId(f"unload:{loaded_unit(world, 'draft-0.0').id}") in starts(plan)["coder-0.0"].after


def test_nothing_in_use_is_dropped_and_the_plan_says_what_waits_for_whom() -> None:
    world = loaded(running(wide(), roomy()), "draft-0.0", idle_s=None)
    plan = reconcile(wide(small=SMALL), world)
    assert unloads(plan) == []
    (cause,) = [change.cause for change in plan.changes if change.kind == "defer"]
    assert cause == (
        "it needs 5 GiB, alpha has 3 GiB free; draft-0.0 uses a model loaded on demand there: apply again when it is "
        "idle, or orchestrate restart world draft frees it at once"
    )


def test_a_model_that_is_replaced_or_stopped_anyway_is_not_asked_for_its_memory() -> None:
    world = loaded(running(wanted(), roomy()), "draft-0.0")
    plan = reconcile(desired(coder=CODER, writer=WRITER, small=SMALL), world)
    assert unloads(plan) == []
    assert "small-0.0" in starts(plan)


def test_on_a_node_that_declares_its_memory_loaded_models_count() -> None:
    third = {"model": "m1", "nodes": ["alpha"], "start": "on-demand"}
    wish = desired(draft=DRAFT, third=third, small=SMALL)  # 9 + 3 + 5 of 16 GiB
    world = loaded(loaded(running(desired(draft=DRAFT, third=third), roomy()), "draft-0.0"), "third-0.0", idle_s=9.0)
    world = with_free(world, 100.0)  # the machine itself has more
    assert unloads(reconcile(wish, world)) == ["third-0.0"]
    used = with_free(loaded(loaded(world, "draft-0.0", idle_s=None), "third-0.0", idle_s=None), 100.0)
    plan = reconcile(wish, used)
    assert [change.target for change in plan.changes if change.kind == "defer"] == ["alpha/small-0.0"]
    text = render(plan, "")
    assert "draft-0.0, third-0.0 use models loaded on demand there: apply again when they are idle" in text
    assert "or orchestrate restart world draft third frees it at once" in text


def test_a_copy_that_moved_to_a_node_is_no_conflict_there() -> None:
    state = desired(coder={**CODER, "model": "m3"}, draft=DRAFT, writer=WRITER)
    for slot in ("writer-0.0", "coder-0.0"):
        unit = replace(state.units[SlotId(slot)], is_moved=True)
        moved = replace(state, units={**state.units, SlotId(slot): unit})
        assert not reconcile(moved, roomy()).conflicts
