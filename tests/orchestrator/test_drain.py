"""Draining: what a name covers, what is taken out and put back, and what that leaves without an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.drain import covers, drain_plan
from orchestrator.expand import Desired
from orchestrator.observed import Observed
from orchestrator.plan import Drain, Plan, Publish, Start, render
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from schemas.base import NodeName, UnitId
from schemas.routes import Routes
from schemas.unit import slot_of
from tests.orchestrator.test_plan_text import changed, lab, lab_running, running, unseen, without

BOTH = (NodeName("mono512"), NodeName("m4max"))


def applied(desired: Desired, observed: Observed, plan: Plan) -> Observed:
    for action in plan.actions:
        observed = apply_action(action, desired, observed)
    return observed


def drain(world: Observed, name: str, wanted: Desired | None = None, *, undo: bool = False) -> tuple[Desired, Observed]:
    wanted, plan = drain_plan(wanted or lab(), world, name, undo=undo)
    assert plan.conflicts == ()
    return wanted, applied(wanted, world, plan)


def states(world: Observed) -> dict[str, str]:
    assert world.routes is not None
    return {slot_of(instance.unit): instance.state for instance in world.routes.instances}


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("titan", True),
        ("titan-0", True),
        ("titan-0.0", True),
        ("titan-0.1", True),
        ("titan-0.2", False),
        ("m4max", True),
        ("m4max/titan-0.1", True),
        ("titan-0.0@abc", True),
        ("titan-0.0@abd", False),
        ("titan-1", False),
        ("tit", False),
    ],
)
def test_a_group_goes_by_its_service_its_slots_and_all_its_nodes(name, is_covered):
    assert covers((name,), UnitId("titan-0.0@abc"), BOTH) is is_covered


def test_what_is_drained_stays_out_of_a_later_plan_and_comes_back_when_undone():
    wanted, world = drain(lab_running(), "titan")
    assert states(world) == {"coder-0.0": "ready", "titan-0.0": "draining"}
    later = reconcile(wanted, world)
    assert later.is_empty
    assert later.notes == ("titan is drained; orchestrate drain world titan --undo",)
    wanted, world = drain(world, "titan", wanted, undo=True)
    assert wanted.drained == ()
    assert states(world) == {"coder-0.0": "ready", "titan-0.0": "ready"}
    assert reconcile(wanted, world).is_empty


def test_a_node_takes_a_group_out_that_crosses_it():
    assert states(drain(lab_running(), "m4max")[1]) == {"coder-0.0": "ready", "titan-0.0": "draining"}


def test_what_is_started_while_drained_is_not_served_from():
    wanted, world = drain(lab_running(), "coder")
    world = running(wanted, without(world, "coder-0.0"))
    assert states(world) == {"coder-0.0": "draining", "titan-0.0": "ready"}
    assert reconcile(wanted, world).is_empty


def test_what_two_names_cover_stays_out_until_both_are_undone():
    wanted, world = drain(lab_running(), "titan")
    wanted, world = drain(world, "m4max", wanted)
    wanted, world = drain(world, "titan", wanted, undo=True)
    assert states(world)["titan-0.0"] == "draining"
    assert states(drain(world, "m4max", wanted, undo=True)[1])["titan-0.0"] == "ready"


def test_what_is_not_ready_is_not_put_back():
    wanted, world = drain(lab_running(), "coder")
    wanted, world = drain(changed(world, "coder-0.0", ready=False), "coder", wanted, undo=True)
    assert (wanted.drained, states(world)["coder-0.0"]) == ((), "draining")
    assert [type(action) for action in reconcile(wanted, world).actions][-1] is Publish


def test_the_last_answer_of_a_role_is_named_with_what_is_behind_it():
    wanted, plan = drain_plan(lab(), lab_running(), "titan", undo=False)
    assert plan.routing == ()
    plan = drain_plan(wanted, applied(wanted, lab_running(), plan), "mono512", undo=False)[1]
    assert plan.routing == ("chat is left without anything that answers, no fallback",)


def test_a_plan_counts_what_is_drained_as_not_serving():
    wanted, world = drain(lab_running(), "titan")
    plan = reconcile(wanted, without(world, "coder-0.0"))
    assert plan.outages == ("chat until coder-0.0 is ready",)


@pytest.mark.parametrize(
    ("name", "undo", "world", "words"),
    [
        ("mono513", False, lab_running(), "did you mean mono512?"),
        ("gateway", False, lab_running(), "nothing that the gateway calls is called so"),
        ("titan", True, lab_running(), "titan is not drained"),
        ("titan", False, replace(lab_running(), routes=None), "first: orchestrate apply world"),
        ("titan", False, unseen(lab_running(), "mono512"), "mono512 cannot be reached"),
    ],
)
def test_what_cannot_be_drained_says_why(name, undo, world, words):
    plan = drain_plan(lab(), world, name, undo=undo)[1]
    assert words in " ".join(plan.conflicts)


def test_a_node_said_to_be_lost_that_is_none_or_answers_keeps_a_drain_from_anything():
    for lost, words in (("mono513", "did you mean mono512?"), ("mono512", "the node answers; leave the option out")):
        policy = PlanPolicy(assume_lost=frozenset({NodeName(lost)}))
        plan = drain_plan(lab(), lab_running(), "titan", undo=False, policy=policy)[1]
        assert words in " ".join(plan.conflicts)


def test_a_drain_touches_only_the_routes_of_what_it_names():
    plan = drain_plan(lab(), without(lab_running(), "coder-0.0"), "titan", undo=False)[1]
    assert [type(action) for action in plan.actions] == [Drain]
    assert not any(isinstance(action, Start) for action in plan.actions)
    assert "Plan: 1 to drain." in render(plan, "Stack world")


def test_routes_without_a_drain_are_as_older_readers_know_them():
    plain = Routes(stack="world", generation=1)
    assert "drained" not in plain.to_json()
    assert Routes.from_json(plain.to_json()) == plain
    marked = Routes(stack="world", generation=1, drained=("mono512",))
    assert Routes.from_json(marked.to_json()) == marked
