"""What must hold for every plan, against a goal that knows nothing of how plans are made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.expand import Desired
from orchestrator.memory import KnownMemory
from orchestrator.observed import Observed, Reachable
from orchestrator.plan import Action, Plan, Start, Stop
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action, started
from schemas.unit import GatewaySpec, WorkerSpec
from tests.properties.goals import alive, free_gib, goal_failures, group_of, groups, is_drained, served, taken_ports
from tests.properties.worlds import NODES, OWNER, Case, cases, losing

MANY = settings(max_examples=60, deadline=None)
FEW = settings(max_examples=15, deadline=None)


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


def half_started(start: Start, desired: Desired, world: Observed) -> Iterator[Observed]:
    """Yield the worlds in which only the first ranks of a group were started when the controller died."""
    for placed in start.units[:-1]:
        world = started(world, desired, placed, "half")
        yield world


def planned(case: Case, world: Observed | None = None) -> Plan:
    plan = reconcile(case.desired, world or case.world, case.policy)
    assume(not plan.conflicts)
    return plan


def assert_converges(case: Case, world: Observed, seed: int) -> None:
    """Plan again from a world left behind, run it, and compare with the goal."""
    plan = reconcile(case.desired, world, case.policy)
    if plan.conflicts:
        return  # a person has to decide; nothing is done
    after = run(plan, case.desired, world, seed)[-1]
    assert goal_failures(case.desired, after, case.policy, plan) == []


@MANY
@given(cases(), st.integers())
def test_a_plan_reaches_the_goal_in_any_order_and_the_next_one_is_empty(case, seed):
    plan = planned(case)
    after = run(plan, case.desired, case.world, seed)[-1]
    assert goal_failures(case.desired, after, case.policy, plan) == []
    again = reconcile(case.desired, after, case.policy)
    done = {change.target for change in plan.changes if change.kind in ("defer", "hold", "failed")}
    assert [c for c in again.changes if c.kind not in ("defer", "hold", "failed") and c.target not in done] == []


@FEW
@given(cases(), st.integers())
def test_a_crash_after_any_action_and_inside_any_start_is_mended_by_the_next_plan(case, seed):
    plan = planned(case)
    order = execution_order(plan, seed)
    world = case.world
    for action in order:
        if isinstance(action, Start):
            for half in half_started(action, case.desired, world):
                assert_converges(case, half, seed + 1)
        world = apply_action(action, case.desired, world)
        assert_converges(case, world, seed + 1)


@MANY
@given(cases(), st.integers(), st.data())
def test_a_unit_killed_at_any_moment_is_started_again_by_the_next_plan(case, seed, data):
    passed = run(planned(case), case.desired, case.world, seed)
    moment = data.draw(st.sampled_from(passed))
    living = alive(moment)
    assume(living)
    unit = data.draw(st.sampled_from(living))
    assert_converges(case, losing(moment, unit.id, KnownMemory(case.desired, moment).of(unit) or 0.0), seed)


@MANY
@given(cases(), st.integers())
def test_two_living_units_never_share_a_port(case, seed):
    for moment in run(planned(case), case.desired, case.world, seed):
        ports = taken_ports(moment)
        assert len(set(ports)) == len(ports)


@MANY
@given(cases(), st.integers())
def test_no_node_is_ever_asked_for_more_memory_than_it_has(case, seed):
    """Loading counts from the start, whatever of it the node has noticed.

    What a unit of unknown size gives back when it stops is unknown too: the node that it stops on is not judged.
    """
    plan = planned(case)
    known = KnownMemory(case.desired, case.world)
    stopped = {action.unit for action in plan.actions if isinstance(action, Stop)}
    unsure = {unit.node for unit in alive(case.world) if unit.id in stopped and known.of(unit) is None}
    seen = [name for name, node in case.world.nodes.items() if isinstance(node, Reachable) and name not in unsure]
    at_first = {name: min(0.0, free_gib(case.world, case.desired, name)) for name in seen}
    for moment in run(plan, case.desired, case.world, seed):
        for name in seen:
            assert free_gib(moment, case.desired, name) >= at_first[name] - 1e-6


@MANY
@given(cases(), st.integers())
def test_a_group_is_started_as_a_whole_on_ports_that_none_of_its_launches_had(case, seed):
    plan = planned(case)
    wanted = groups(case.desired)
    for start in (action for action in plan.actions if isinstance(action, Start)):
        group = group_of(start.first.unit.id)
        assert [placed.unit.id for placed in start.units] == [
            unit.id for unit in sorted(wanted[group], key=lambda u: getattr(u.spec, "rank", 0))
        ]
        spec = start.first.unit.spec
        if not isinstance(spec, WorkerSpec) or spec.group is None:
            continue
        before = [unit for unit in case.world.units() if group_of(unit.id) == group]
        had = {(u.node, port) for u in before for port in (u.port, u.link_port, u.control_port)}
        now = {(p.unit.node, port) for p in start.units for port in (p.port, p.link_port, p.control_port) if port}
        assert not had & now
        assert [placed.link_port is not None for placed in start.units] == [
            spec.group.backend == "ring" or rank == 0 for rank in range(spec.group.size)
        ]
        assert start.first.control_port is not None


@MANY
@given(cases(), st.integers())
def test_two_launches_of_a_group_never_live_at_once_unless_it_is_a_surge(case, seed):
    plan = planned(case)
    surged = {group_of(a.first.unit.id) for a in plan.actions if isinstance(a, Start)} & {
        change.target.split("/")[-1].split(".")[0] for change in plan.changes if change.how == "surge"
    }
    old = {(group_of(unit.id), unit.launch) for unit in alive(case.world)}
    for moment in run(plan, case.desired, case.world, seed):
        for group in groups(case.desired):
            launches = {unit.launch for unit in alive(moment) if group_of(unit.id) == group}
            fresh = {launch for launch in launches if (group, launch) not in old}
            assert not fresh or len(launches) == 1 or group in surged


@MANY
@given(cases(), st.integers())
def test_a_surge_never_leaves_its_service_without_a_ready_instance(case, seed):
    gateway = next((unit.node for unit in case.desired.units.values() if isinstance(unit.spec, GatewaySpec)), None)
    assume(gateway is None or isinstance(case.world.nodes[gateway], Reachable))  # else nobody routes
    plan = planned(case)
    replaced = [change for change in plan.changes if change.kind == "replace"]
    names = {(change.target.split("/")[-1].rsplit("-", 1)[0], change.how) for change in replaced}
    lost = {name for name, how in names if how == "swap"} | _put_off(plan)
    surged = {name for name, how in names if how == "surge"} - lost
    silent = {group_of(unit.id).rpartition("-")[0] for unit in alive(case.world) if unit.silent_s}
    at_first = (served(case.world) & surged) - silent - _broken(case.world) - _drained(case)
    for moment in run(plan, case.desired, case.world, seed):
        assert at_first <= served(moment)


@MANY
@given(cases(), st.integers())
def test_replicas_that_swap_are_never_down_together(case, seed):
    gateway = next((unit.node for unit in case.desired.units.values() if isinstance(unit.spec, GatewaySpec)), None)
    assume(gateway is None or isinstance(case.world.nodes[gateway], Reachable))  # else nobody routes
    plan = planned(case)
    routed = (
        {entry.unit for entry in case.world.routes.instances if entry.state == "ready"} if case.world.routes else ()
    )
    silent = {group_of(unit.id) for unit in alive(case.world) if unit.silent_s}  # one silent rank fails a whole group
    serving = {group_of(unit.id) for unit in alive(case.world) if unit.id in routed and unit.ready} - silent
    swapped = {c.target.split("/")[-1].split(".")[0] for c in plan.changes if c.how == "swap"}
    stops = {action.id: group_of(action.unit) for action in plan.actions if isinstance(action, Stop)}
    # where another start needs the room of a replica, that one cannot wait for its turn
    starts = [action for action in plan.actions if isinstance(action, Start)]
    in_the_way = {stops[a] for s in starts for a in s.after if a in stops} - swapped
    in_the_way |= {stops[a] for s in starts for a in s.after if stops.get(a) not in (None, group_of(s.first.unit.id))}
    turns = [group.rpartition("-")[0] for group in sorted((swapped & serving) - in_the_way)]
    several = {service for service in turns if turns.count(service) > 1} - _put_off(plan) - _broken(case.world)
    several -= _drained(case)
    for moment in run(plan, case.desired, case.world, seed):
        assert several <= served(moment)


def _put_off(plan: Plan) -> set[str]:
    kinds = ("defer", "hold", "failed", "stop")
    return {c.target.split("/")[-1].rsplit("-", 1)[0] for c in plan.changes if c.kind in kinds}


def _drained(case: Case) -> set[str]:
    """Return the services of which something is drained."""
    return {group_of(unit.id).rpartition("-")[0] for unit in alive(case.world) if is_drained(case.desired, unit)}


def _broken(world: Observed) -> set[str]:
    """Return the services of which a group lacks a rank or has ranks of several launches."""
    found = set()
    for unit in alive(world):
        if isinstance(unit.spec, WorkerSpec) and unit.spec.group is not None:
            peers = [o for o in alive(world) if o.launch == unit.launch and group_of(o.id) == group_of(unit.id)]
            if len(peers) != unit.spec.group.size:
                found.add(str(unit.spec.service))
    return found


@MANY
@given(cases(), st.integers())
def test_the_gateway_is_never_gone_while_it_is_replaced(case, seed):
    def serving(moment: Observed) -> bool:
        living = [unit for unit in alive(moment) if isinstance(unit.spec, GatewaySpec)]
        return any(unit.ready and not unit.silent_s for unit in living)

    plan = planned(case)
    if case.desired.units and serving(case.world):
        assert all(serving(moment) for moment in run(plan, case.desired, case.world, seed))


@MANY
@given(cases(), st.randoms())
def test_equal_worlds_give_equal_plans_whatever_the_order_they_were_read_in(case, chance):
    def shuffled(mapping):
        items = list(mapping.items())
        chance.shuffle(items)
        return dict(items)

    nodes = {
        name: replace(node, units=shuffled(node.units), ports=shuffled(node.ports))
        if isinstance(node, Reachable)
        else node
        for name, node in shuffled(case.world.nodes).items()
    }
    first = reconcile(case.desired, case.world, case.policy)
    second = reconcile(
        replace(case.desired, units=shuffled(case.desired.units)), replace(case.world, nodes=nodes), case.policy
    )
    assert first == second
    assert first.fingerprint() == second.fingerprint()


@MANY
@given(cases())
def test_nothing_is_planned_on_a_node_that_did_not_answer(case):
    unseen = {name for name, node in case.world.nodes.items() if not isinstance(node, Reachable)}
    plan = reconcile(case.desired, case.world, case.policy)
    started_on = {p.unit.node for a in plan.actions if isinstance(a, Start) for p in a.units}
    touched = {action.node for action in plan.actions if type(action).__name__ not in ("Defer", "Pull")}
    assert not unseen & (touched | started_on)


@MANY
@given(cases())
def test_what_is_held_back_says_when_to_look_again_and_only_under_watch(case):
    plan = reconcile(case.desired, case.world, case.policy)
    held = [change for change in plan.changes if change.kind == "hold"]
    assert (plan.next_look_s is not None) == bool(held)
    assert not held or case.policy.heals


@MANY
@given(cases())
def test_targets_change_nothing_else_and_say_what_they_leave_out(case):
    whole = reconcile(case.desired, case.world, replace(case.policy, targets=()))
    services = sorted({group_of(unit.id).rpartition("-")[0] for unit in case.desired.units.values()})
    assume(services)
    part = reconcile(case.desired, case.world, replace(case.policy, targets=(services[0],)))
    assert not any("is called so" in conflict for conflict in part.conflicts)
    stops = {a.unit for a in part.actions if type(a).__name__ == "Stop"}
    for unit in alive(case.world):
        in_the_way = unit.port is not None and any(
            unit.port == getattr(wanted.spec, "port", None) for wanted in case.desired.units.values()
        )
        assert unit.id not in stops or group_of(unit.id).startswith(services[0]) or in_the_way
    planned_kinds = {(change.kind, change.target) for change in part.changes}
    missing = {f"{c.verb} {c.target}" for c in whole.changes if (c.kind, c.target) not in planned_kinds}
    assert set(part.left_out) == missing


@MANY
@given(cases())
def test_a_stack_of_another_directory_is_never_touched(case):
    living = alive(case.world)
    assume(living)
    assert all(unit.owner == OWNER for unit in living)
    other = reconcile(replace(case.desired, owner="/elsewhere"), case.world)
    assert any("/conf" in conflict for conflict in other.conflicts)


def test_names_that_mean_nothing_are_refused_with_the_nearest():
    desired = Desired("world", OWNER, nodes=NODES)
    plan = reconcile(desired, Observed(), PlanPolicy(targets=("gama",), assume_lost=frozenset({"btea"})))
    assert [c for c in plan.conflicts if "gamma" in c]
    assert [c for c in plan.conflicts if "beta" in c]
