"""Services whose models are loaded when they are asked for: how they are planned, started and shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.commands import Demand, worker_argv
from orchestrator.expand import Desired
from orchestrator.observed import Observed, ObservedUnit, OnDemandSeen, Reachable
from orchestrator.plan import Start, render
from orchestrator.reconcile import reconcile
from orchestrator.sharing import allotments
from orchestrator.simulate import apply_action
from orchestrator.status import StackStatus, status_data, status_lines
from schemas.base import NodeName, SlotId
from schemas.on_demand import Allotment, OnDemandReport
from schemas.unit import WorkerSpec
from tests.conftest import Golden
from tests.orchestrator.test_plan_text import CODER, desired, empty, running

ALPHA = NodeName("alpha")
DRAFT = {"model": "m4", "nodes": ["alpha"], "start": "on-demand", "idle_stop_s": 600.0}
"""Needs 9 GiB; the coder beside it, which always runs, 3 of the node's 16."""
WRITER = {"model": "m5", "nodes": ["alpha"], "start": "on-demand"}
"""Needs 11 GiB: it fits beside the coder, and not together with the draft."""
HEADING = "Stack world at 4e1c9d2 -> generation 18"


def wanted(**more: dict[str, object]) -> Desired:
    return desired(coder=CODER, draft=DRAFT, writer=WRITER, **more)


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


def loaded(world: Observed, slot: str) -> Observed:
    """Return a world in which a model that is loaded on demand is in memory."""
    alpha = world.nodes[ALPHA]
    assert isinstance(alpha, Reachable)
    found = next(unit for unit in alpha.units.values() if unit.slot == slot and unit.alive)
    held = replace(found, demand=OnDemandSeen("ready", OnDemandReport(since_s=9.0, idle_s=7.0)))
    left = replace(alpha, units={**alpha.units, held.id: held}, memory_available_gib=3.0)
    return replace(world, nodes={**world.nodes, ALPHA: left})


def test_a_loaded_model_makes_room_for_itself_when_it_is_to_run_always() -> None:
    world = loaded(running(wanted(), roomy()), "draft-0.0")
    plan = reconcile(desired(coder=CODER, draft={"model": "m4", "nodes": ["alpha"]}), world)
    assert not any(change.kind == "defer" for change in plan.changes)
    assert [action.first.unit.spec.slot for action in plan.actions if isinstance(action, Start)] == ["draft-0.0"]


def test_a_start_that_a_loaded_model_leaves_no_room_for_says_how_to_free_it() -> None:
    world = loaded(running(wanted(), roomy()), "draft-0.0")
    plan = reconcile(wanted(big={"model": "m4", "nodes": ["alpha"]}), world)
    (cause,) = [change.cause for change in plan.changes if change.kind == "defer"]
    assert "draft-0.0 holds a model loaded on demand there" in cause
    assert "orchestrate restart world draft frees it" in cause


def test_a_copy_that_moved_to_a_node_is_no_conflict_there() -> None:
    state = desired(coder={**CODER, "model": "m3"}, draft=DRAFT, writer=WRITER)
    for slot in ("writer-0.0", "coder-0.0"):
        unit = replace(state.units[SlotId(slot)], is_moved=True)
        moved = replace(state, units={**state.units, SlotId(slot): unit})
        assert not reconcile(moved, roomy()).conflicts
