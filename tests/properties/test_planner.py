"""What must hold for every plan, against a goal that knows nothing of how plans are made."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.expand import Desired
from orchestrator.observed import Observed, Reachable
from orchestrator.plan import Action, Plan
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from schemas.unit import GatewaySpec
from tests.properties.worlds import OWNER, address, losing, worlds

MANY = settings(max_examples=200, deadline=None)


def goal_failures(desired: Desired, world: Observed) -> list[str]:
    """Say what is not as the stack wants it, on the nodes that can be seen."""
    seen = {name for name, node in world.nodes.items() if isinstance(node, Reachable)}
    wanted = {unit.id: unit for unit in desired.units.values() if unit.node in seen}
    alive = {unit.id: unit for unit in world.units() if unit.alive}
    # a slot whose node did not answer keeps what it has elsewhere
    held = {unit.spec.slot for unit in desired.units.values() if unit.node not in seen}
    failures = [f"{key} should not run" for key, unit in alive.items() if key not in wanted and unit.slot not in held]
    failures += [f"{unit} does not run" for unit in wanted if unit not in alive]
    failures += [f"{unit.id} is not ready" for unit in alive.values() if unit.id in wanted and not unit.ready]
    if not desired.units:
        return failures
    routes = {instance.unit: instance for instance in world.routes.instances} if world.routes else {}
    for unit in wanted.values():
        if isinstance(unit.spec, GatewaySpec):
            continue
        entry = routes.get(unit.id)
        if entry is None or entry.state != "ready":
            failures.append(f"{unit.id} is not routed")
        elif entry.url != f"http://{address(unit.node)}:{alive[unit.id].port}" if unit.id in alive else True:
            failures.append(f"{unit.id} is routed to {entry.url}")
    failures += [f"{unit} is routed and gone" for unit, e in routes.items() if e.node in seen and unit not in alive]
    gateway_seen = any(isinstance(unit.spec, GatewaySpec) for unit in wanted.values())
    if gateway_seen and (world.gateway is None or world.gateway.routing != desired.routing):
        failures.append("the gateway serves other routes")
    return failures


def execution_order(plan: Plan, seed: int) -> list[Action]:
    """Return the actions in one of the orders that their dependencies allow."""
    chance = random.Random(seed)
    waiting, done, order = {action.id: action for action in plan.actions}, set(), []
    while waiting:
        startable = [action for action in waiting.values() if set(action.after) <= done]
        assert startable, f"these wait for each other: {sorted(waiting)}"
        action = chance.choice(startable)
        order.append(action)
        done.add(action.id)
        del waiting[action.id]
    return order


def run(plan: Plan, desired: Desired, world: Observed, seed: int, steps: int | None = None) -> list[Observed]:
    """Return the worlds after each of the first `steps` actions."""
    passed = [world]
    for action in execution_order(plan, seed)[:steps]:
        passed.append(apply_action(action, desired, passed[-1]))
    return passed


def planned(desired: Desired, world: Observed) -> Plan:
    plan = reconcile(desired, world)
    assume(not plan.conflicts)
    return plan


@MANY
@given(worlds(), st.integers())
def test_a_plan_reaches_the_goal_in_any_order_and_the_next_one_is_empty(case, seed):
    desired, world = case
    after = run(planned(desired, world), desired, world, seed)[-1]
    assert goal_failures(desired, after) == []
    assert [c for c in reconcile(desired, after).changes if c.kind != "defer"] == []


@MANY
@given(worlds(), st.integers(), st.integers(min_value=0, max_value=12))
def test_a_crash_after_any_action_is_mended_by_the_next_plan(case, seed, steps):
    desired, world = case
    crashed = run(planned(desired, world), desired, world, seed, steps)[-1]
    after = run(planned(desired, crashed), desired, crashed, seed + 1)[-1]
    assert goal_failures(desired, after) == []


@MANY
@given(worlds(), st.integers(), st.data())
def test_a_unit_killed_at_any_moment_is_started_again_by_the_next_plan(case, seed, data):
    desired, world = case
    passed = run(planned(desired, world), desired, world, seed)
    moment = data.draw(st.sampled_from(passed))
    alive = [unit.id for unit in moment.units() if unit.alive]
    assume(alive)
    hurt = losing(moment, data.draw(st.sampled_from(alive)))
    after = run(planned(desired, hurt), desired, hurt, seed)[-1]
    assert goal_failures(desired, after) == []


@MANY
@given(worlds(), st.integers())
def test_two_living_workers_never_share_a_port_and_never_start_over_each_other(case, seed):
    desired, world = case
    for moment in run(planned(desired, world), desired, world, seed):
        taken = [
            (unit.node, unit.port) for unit in moment.units() if unit.alive and not isinstance(unit.spec, GatewaySpec)
        ]
        assert len(set(taken)) == len(taken)


@MANY
@given(worlds(), st.integers())
def test_a_surge_never_leaves_its_service_without_a_ready_instance(case, seed):
    desired, world = case
    plan = planned(desired, world)
    surged = {change.target.split("/")[1].rsplit("-", 1)[0] for change in plan.changes if change.how == "surge"}

    def served(moment: Observed) -> set[str]:
        ready = {unit.id for unit in moment.units() if unit.alive and unit.ready}
        entries = moment.routes.instances if moment.routes else ()
        return {entry.service for entry in entries if entry.state == "ready" and entry.unit in ready}

    at_first = served(world) & surged
    for moment in run(plan, desired, world, seed):
        assert at_first <= served(moment)


@MANY
@given(worlds(), st.integers())
def test_the_gateway_is_never_gone_while_it_is_replaced(case, seed):
    desired, world = case
    plan = planned(desired, world)

    def serving(moment: Observed) -> bool:
        return any(isinstance(unit.spec, GatewaySpec) and unit.alive and unit.ready for unit in moment.units())

    if desired.units and serving(world):
        assert all(serving(moment) for moment in run(plan, desired, world, seed))


@MANY
@given(worlds(), st.randoms())
def test_equal_worlds_give_equal_plans_whatever_the_order_they_were_read_in(case, chance):
    desired, world = case

    def shuffled(mapping):
        items = list(mapping.items())
        chance.shuffle(items)
        return dict(items)

    nodes = {
        name: replace(node, units=shuffled(node.units), ports=shuffled(node.ports))
        if isinstance(node, Reachable)
        else node
        for name, node in shuffled(world.nodes).items()
    }
    first, second = reconcile(desired, world), reconcile(desired, replace(world, nodes=nodes))
    assert first == second
    assert first.fingerprint() == second.fingerprint()


@MANY
@given(worlds())
def test_nothing_is_planned_on_a_node_that_did_not_answer(case):
    desired, world = case
    unseen = {name for name, node in world.nodes.items() if not isinstance(node, Reachable)}
    touched = {action.node for action in reconcile(desired, world).actions if type(action).__name__ != "Defer"}
    assert not unseen & touched


@MANY
@given(worlds())
def test_a_stack_of_another_directory_is_never_touched(case):
    desired, world = case
    alive = [unit for unit in world.units() if unit.alive]
    assume(alive)
    assert all(unit.owner == OWNER for unit in alive)
    other = reconcile(replace(desired, owner="/elsewhere"), world)
    assert any("/conf" in conflict for conflict in other.conflicts)
