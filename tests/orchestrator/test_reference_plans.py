"""Where a plan has the answers made by which groups are judged, and what it says where it has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.expand import Desired
from orchestrator.observed import Observed, Reachable, Unreachable
from orchestrator.plan import AwaitReady, Plan, Reference
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from schemas.base import NodeName
from schemas.verdict import Verdict
from tests.orchestrator.test_plan_text import desired, empty, running

RING = {"backend": "ring", "strategy": "tensor"}
FIRST: dict[str, Any] = {"model": "m5", "nodes": ["alpha", "beta"], "sharding": RING}
"""Of the 11 GiB of the model each rank has a half."""
SECOND = {"model": "m5", "nodes": ["alpha", "gamma"], "sharding": RING}


def both() -> Desired:
    wanted = desired(first=FIRST, second=SECOND)
    gamma = wanted.nodes[NodeName("beta")].model_copy(update={"host": "gamma.lan"})
    return replace(wanted, nodes={**wanted.nodes, NodeName("gamma"): gamma})


def with_free(**free: float | None) -> Observed:
    return empty(**{name: Reachable(memory_gib=16.0, memory_available_gib=gib) for name, gib in free.items()})


def limited(plan: Plan) -> list[str]:
    return [
        action.unit.partition(".")[0] for action in plan.actions if isinstance(action, AwaitReady) and action.is_limited
    ]


def test_what_one_group_has_room_for_judges_every_group_of_the_model() -> None:
    plan = reconcile(both(), with_free(alpha=12.0, beta=8.0, gamma=16.0))
    (reference,) = [action for action in plan.actions if isinstance(action, Reference)]
    assert reference.node == "gamma"
    assert limited(plan) == []
    waits = [
        action
        for action in plan.actions
        if isinstance(action, AwaitReady) and action.unit.startswith(("first", "second"))
    ]
    assert all(reference.id in action.after for action in waits)
    assert len(waits) == 2


def test_without_room_anywhere_every_group_is_limited() -> None:
    plan = reconcile(both(), with_free(alpha=12.0, beta=8.0, gamma=8.0))
    assert limited(plan) == ["first-0", "second-0"]
    assert any("no node of it has the 11 GiB free" in note for note in plan.notes)


def test_memory_that_nobody_knows_is_not_called_too_little() -> None:
    wanted = desired(first=FIRST)
    nodes = {name: node.model_copy(update={"memory_gib": None}) for name, node in wanted.nodes.items()}
    plan = reconcile(replace(wanted, nodes=nodes), with_free(alpha=None, beta=None))
    assert any("how much memory is free on alpha, beta is not known" in note for note in plan.notes)


def judged(wanted: Desired, verdict: Verdict) -> Observed:
    """Return the group at work, with that verdict on it."""
    world = running(wanted, with_free(alpha=16.0, beta=16.0))
    seen = world.nodes[NodeName("alpha")]
    assert isinstance(seen, Reachable)
    units = {unit.id: replace(unit, verdict=verdict) for unit in seen.units.values()}
    return replace(world, nodes={**world.nodes, NodeName("alpha"): replace(seen, units=units)})


@pytest.mark.parametrize(
    ("verdict", "cause"),
    [
        (Verdict(outcome="off"), "sharding.canary off -> long_tokens"),
        (Verdict(outcome="passed", asked_tokens=77), "sharding.canary.long_tokens 77 ->"),
        (Verdict(outcome="limited", asked_tokens=77), "sharding.canary.long_tokens 77 ->"),
    ],
)
def test_a_group_at_work_is_judged_again_by_a_changed_canary_and_serves_meanwhile(verdict: Verdict, cause: str) -> None:
    wanted = desired(first=FIRST)
    world = judged(wanted, verdict)
    plan = reconcile(wanted, world)
    (change,) = [change for change in plan.changes if change.kind == "judge"]
    assert change.cause.startswith(cause)
    (judge,) = [action for action in plan.actions if isinstance(action, AwaitReady)]
    assert judge.is_serving
    assert {type(action) for action in plan.actions} <= {AwaitReady, Reference}
    for action in plan.actions:
        world = apply_action(action, wanted, world)
    assert reconcile(wanted, world).is_empty


@pytest.mark.parametrize("verdict", [Verdict(outcome="passed"), Verdict(outcome="limited", asked_tokens=None)])
def test_a_group_judged_before_it_was_noted_by_what_is_left_alone(verdict: Verdict) -> None:
    wanted = desired(first=FIRST)
    assert reconcile(wanted, judged(wanted, verdict)).is_empty


def test_a_canary_that_is_wanted_no_more_changes_nothing_that_runs() -> None:
    world = judged(desired(first=FIRST), Verdict(outcome="passed", asked_tokens=4000))
    without = {**FIRST, "sharding": {**FIRST["sharding"], "canary": "off"}}
    assert reconcile(desired(first=without), world).is_empty


def test_a_lost_node_that_left_the_stack_is_said_to_be_looked_at_no_more() -> None:
    wanted = replace(desired(), left=frozenset({NodeName("beta")}))
    lost = PlanPolicy(assume_lost=frozenset({NodeName("beta")}))
    plan = reconcile(wanted, empty(beta=Unreachable("no route")), lost)
    assert "beta left the stack and is assumed lost: it is not looked at any more" in plan.notes
