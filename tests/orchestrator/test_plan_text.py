"""The text of plans, as people read it: one golden file for each kind of change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.expand import Desired, expand, nothing
from orchestrator.observed import (
    HelperSeen,
    HelperSilent,
    ModelFacts,
    Observed,
    ObservedUnit,
    PortHolder,
    Reachable,
    Unreachable,
)
from orchestrator.plan import Drain, Plan, Stop, plan_data, render
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from schemas.base import HelperName, ModelName, NodeName, SlotId, StackName, UnitId
from schemas.node import Node
from tests.properties.test_planner import execution_order
from tests.properties.worlds import OWNER, fleet_of, losing, stack_of

CODER = {"model": "m1", "nodes": ["alpha"]}


def desired(gateway_port: int = 8000, aliases: list[str] | None = None, **services: dict[str, object]) -> Desired:
    return expand(stack_of(services or {"coder": CODER}, gateway_port, aliases), OWNER)


def empty(**nodes: Reachable | Unreachable) -> Observed:
    seen = {NodeName(name): Reachable(memory_gib=16.0, memory_available_gib=12.0) for name in ("alpha", "beta")}
    return Observed({**seen, **{NodeName(name): node for name, node in nodes.items()}})


def three() -> Observed:
    return empty(gamma=Reachable(memory_gib=16.0, memory_available_gib=12.0))


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
    "swap_to_a_missing_model": (desired(coder={**SWAPPED, "model": "m2"}), running(desired())),
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


LAB = {
    "mono512": {"reach": "local", "addresses": {"lan": "10.0.0.1"}, "memory_gib": 512, "reserve_gib": 16},
    "m4max": {
        "reach": "ssh",
        "host": "m4max.lan",
        "addresses": {"lan": "10.0.0.2"},
        "memory_gib": 128,
        "reserve_gib": 16,
    },
    "rtx5080": {"reach": "none"},
}
TITAN = {"model": "m66", "nodes": ["mono512", "m4max"], "sharding": {"backend": "ring", "strategy": "tensor"}}
RTX = {
    "rtx": {
        "node": "rtx5080",
        "url": "http://10.0.0.9:11434",
        "api": "ollama",
        "models": {"nomic-embed-text:v1.5": {"ensure": "present"}},
    }
}
LADDER = {"endpoints": {"titan": {"service": "titan"}, "coder": {"service": "coder", "priority": 2}}}


def lab(
    roles: dict[str, object] | None = None,
    helpers: object = RTX,
    heal: bool = False,
    lost: frozenset[NodeName] = frozenset(),
    **services: object,
) -> Desired:
    """Return what a stack over two machines and a helper wants: a big group, with a small copy behind it."""
    both = {"titan": TITAN, "coder": {"model": "m18", "nodes": ["mono512"]}}
    stack = stack_of(
        services or both,
        nodes=LAB,
        helpers=helpers,
        heal=heal,
        gateway={"node": "mono512", "port": 1234},
        roles=roles or {"chat": LADDER},
    )
    return expand(stack, OWNER, lost=lost)


def two_machines(**nodes: Reachable | Unreachable) -> Observed:
    seen: dict[NodeName, Reachable | Unreachable] = {
        NodeName("mono512"): Reachable(memory_gib=512.0, memory_available_gib=500.0),
        NodeName("m4max"): Reachable(memory_gib=128.0, memory_available_gib=120.0),
    }
    helper = HelperSeen("ollama", "0.12.3", present=frozenset({"nomic-embed-text:v1.5"}))
    return Observed(
        {**seen, **{NodeName(name): node for name, node in nodes.items()}}, helpers={HelperName("rtx"): helper}
    )


def lab_led_from_afar(address: str) -> Desired:
    """Return a stack whose group is called on another machine than the gateway's, at this address."""
    nodes = {**LAB, "m4max": {**LAB["m4max"], "addresses": {"lan": address}}}
    titan = {**TITAN, "nodes": ["m4max", "mono512"]}
    stack = stack_of({"titan": titan}, nodes=nodes, gateway={"node": "mono512", "port": 1234}, roles=ONE_RUNG)
    return expand(stack, OWNER)


def lab_running(wanted: Desired | None = None) -> Observed:
    wanted = wanted or lab()
    return running(wanted, two_machines())


def changed(world: Observed, slot: str, **changes: object) -> Observed:
    """Return the world with one living unit that is different."""
    old = unit(world, slot)
    node = world.nodes[old.node]
    return replace(
        world, nodes={**world.nodes, old.node: replace(node, units={**node.units, old.id: replace(old, **changes)})}
    )


def without(world: Observed, slot: str) -> Observed:
    lost = unit(world, slot)
    return losing(world, lost.id, memory_gib=next(u.memory_gib for u in lab().units.values() if u.id == lost.id) or 0.0)


def unseen(world: Observed, node: str) -> Observed:
    return replace(world, nodes={**world.nodes, NodeName(node): Unreachable("timed out after 10 s")})


def crashing(*crashes_s: float) -> Observed:
    """Return a world in which the small copy has ended so often."""
    world = without(lab_running(), "coder-0.0")
    node = world.nodes[NodeName("mono512")]
    units = {k: replace(u, crashes_s=crashes_s) if u.slot == "coder-0.0" else u for k, u in node.units.items()}
    return replace(world, nodes={**world.nodes, NodeName("mono512"): replace(node, units=units)})


def gateway_crashing(*crashes_s: float) -> Observed:
    """Return a world in which the gateway has ended so often."""
    world = running(desired())
    ended = replace(unit(world, "gateway-0.0"), alive=False, ready=False, exit="exit code 1", crashes_s=crashes_s)
    units = {**world.nodes[NodeName("alpha")].units, ended.id: ended}
    return replace(on_alpha(world, units=units), gateway=None)


def undeclared(wanted: Desired) -> Desired:
    """Return the same without a word about memory."""
    models = {name: model.model_copy(update={"memory_gib": None}) for name, model in wanted.models.items()}
    return replace(wanted, models=models, units={k: replace(u, memory_gib=None) for k, u in wanted.units.items()})


def changed_node(world: Observed, name: str) -> Observed:
    """Return the world in which a node has more memory than the stack may have of it."""
    node = world.nodes[NodeName(name)]
    roomy = replace(node, memory_gib=512.0, memory_available_gib=400.0)
    return replace(world, nodes={**world.nodes, NodeName(name): roomy})


def drained(*names: str) -> Desired:
    return replace(lab(), drained=names)


REPLICAS = {"coder": {"model": "m1", "nodes": ["mono512", "m4max"], "replicas": 3}}
ONE_RUNG = {"chat": {"endpoints": {"titan": {"service": "titan"}}}}
LLAMA = ModelFacts("llama", layers=30, heads=9, kv_heads=3, hidden=576, intermediate=1536, weights_bytes=270_000_000)
LOST = frozenset({NodeName("m4max")})
WATCH = PlanPolicy(heals=True)
SWAPPING = {"coder": {**REPLICAS["coder"], "update": "swap"}}
ONE_SERVICE = {"chat": {"endpoints": {"a": {"service": "coder"}}}}


def swapping(**changes: object) -> Desired:
    """Return what a stack wants whose replicas are stopped before their successors start."""
    return lab(roles=ONE_SERVICE, coder={**SWAPPING["coder"], **changes})


def cut_in_a_swap(*crashes_s: float) -> tuple[Desired, Observed, PlanPolicy]:
    """Return a world in which a swap was cut short before its stop, and its new unit cannot be started now."""
    old = {"model": "m18", "nodes": ["mono512"]}
    wanted = lab(roles=ONE_SERVICE, coder={**old, "max_batch": 4})
    world = lab_running(lab(roles=ONE_SERVICE, coder=old))
    assert world.routes is not None
    entries = tuple(entry.model_copy(update={"state": "replacing"}) for entry in world.routes.instances)
    node = world.nodes[NodeName("mono512")]
    new = wanted.units[SlotId("coder-0.0")]
    ended = ObservedUnit(
        new.id, new.node, alive=False, phase="exited", spec=new.spec, exit="exit code 1", crashes_s=crashes_s
    )
    nodes = {**world.nodes, NodeName("mono512"): replace(node, units={**node.units, ended.id: ended})}
    routes = world.routes.model_copy(update={"instances": entries})
    return wanted, replace(world, nodes=nodes, routes=routes), PlanPolicy()


def assuming_lost(
    big: str = "m18", coder: str = "m18", port: int | None = None
) -> tuple[Desired, Observed, PlanPolicy]:
    """Return a world without m4max, whose small copy may move to mono512, beside the big one there.

    With `port` it has a port of its own, and somebody else has it on mono512.
    """
    small = {"model": coder, "nodes": ["m4max", "mono512"], "port": port}
    services = {"big": {"model": big, "nodes": ["mono512"]}, "coder": small}
    roles = {"chat": {"endpoints": {"any": {"service": "coder"}}}}
    world = unseen(lab_running(lab(roles=roles, **services)), "m4max")
    if port is not None:
        node = world.nodes[NodeName("mono512")]
        taken = replace(node, ports={**node.ports, port: PortHolder(4242, "python3 -m http.server")})
        world = replace(world, nodes={**world.nodes, NodeName("mono512"): taken})
    return lab(roles=roles, lost=LOST, **services), world, PlanPolicy(assume_lost=LOST)


def gateway_on_a_lost_node() -> tuple[Desired, Observed, PlanPolicy]:
    """Return a world without the gateway's node, in which something else has to stop."""
    world = lab_running(lab(titan=TITAN, coder={"model": "m18", "nodes": ["m4max"]}))
    wanted = lab(coder={"model": "m18", "nodes": ["m4max"], "max_batch": 4})
    gone = frozenset({NodeName("mono512")})
    return wanted, replace(unseen(world, "mono512"), routes=None, gateway=None), PlanPolicy(assume_lost=gone)


FLEET: dict[str, tuple[Desired, Observed, PlanPolicy]] = {
    "fleet_first_start": (lab(), two_machines(), PlanPolicy()),
    "fleet_bare_node": (lab(), two_machines(m4max=Reachable(is_provisioned=False)), PlanPolicy()),
    "group_lost_rank": (lab(), without(lab_running(), "titan-0.1"), PlanPolicy()),
    "group_silent_rank": (lab(), changed(lab_running(), "titan-0.1", silent_s=25.0), PlanPolicy()),
    "group_of_two_launches": (lab(), changed(lab_running(), "titan-0.1", launch="older"), PlanPolicy()),
    "group_without_a_rung_behind": (
        lab(roles=ONE_RUNG),
        changed(without(lab_running(lab(roles=ONE_RUNG)), "titan-0.1"), "titan-0.0", load_s=92.0),
        PlanPolicy(),
    ),
    "group_resharded": (
        lab(
            titan={**TITAN, "sharding": {"backend": "ring", "strategy": "pipeline"}},
            coder={"model": "m18", "nodes": ["mono512"]},
        ),
        lab_running(),
        PlanPolicy(),
    ),
    "group_of_which_only_the_first_rank_changes": (
        lab_led_from_afar("10.0.0.7"), lab_running(lab_led_from_afar("10.0.0.2")), PlanPolicy()
    ),
    "group_over_an_unreachable_node": (lab(), unseen(lab_running(), "m4max"), PlanPolicy()),
    "group_over_a_lost_node": (lab(), unseen(lab_running(), "m4max"), PlanPolicy(assume_lost=LOST)),
    "replicas_that_swap": (swapping(max_batch=4), lab_running(swapping()), PlanPolicy()),
    "replicas_that_are_restarted": (
        swapping(), lab_running(swapping()), PlanPolicy(targets=("coder",), restart=("coder",))
    ),
    "cut_in_a_swap_that_fails": cut_in_a_swap(30.0, 60.0, 95.0, 120.0, 300.0),
    "cut_in_a_swap_that_surges": cut_in_a_swap(),
    "lost_copy_that_moves": assuming_lost(),
    "lost_copy_without_room": assuming_lost(big="m120", coder="m140"),
    "lost_copy_whose_port_is_taken": assuming_lost(port=18150),
    "gateway_on_a_lost_node": gateway_on_a_lost_node(),
    "replicas": (
        lab(roles={"chat": {"endpoints": {"a": {"service": "coder"}}}}, **REPLICAS), two_machines(), PlanPolicy()
    ),
    "ladder_lost": (lab(roles=ONE_RUNG), lab_running(), PlanPolicy()),
    "watcher": (lab(heal=True), lab_running(), PlanPolicy()),
    "model_to_pull": (lab(), replace(lab_running(), helpers={HelperName("rtx"): HelperSeen("ollama")}), PlanPolicy()),
    "helper_silent": (
        lab(), replace(lab_running(), helpers={HelperName("rtx"): HelperSilent("connection refused")}), PlanPolicy()
    ),
    "crashed_once": (lab(), crashing(2.0), PlanPolicy()),
    "held_back": (lab(), crashing(2.0, 20.0, 45.0), WATCH),
    "crash_loop": (lab(), crashing(30.0, 60.0, 95.0, 120.0, 300.0), PlanPolicy()),
    "target": (lab(heal=True), without(lab_running(), "coder-0.0"), PlanPolicy(targets=("coder",))),
    "target_unknown": (lab(), lab_running(), PlanPolicy(targets=("codr",))),
    "swap_for_lack_of_declared_memory": (
        lab(titan=TITAN, coder={"model": "m18", "nodes": ["m4max"], "max_batch": 4}),
        changed_node(lab_running(lab(titan=TITAN, coder={"model": "m18", "nodes": ["m4max"]})), "m4max"),
        PlanPolicy(),
    ),
    "restart_asked_for": (lab(), lab_running(), PlanPolicy(targets=("titan",), restart=("titan",))),
    "target_without_anything_to_do": (lab(), without(lab_running(), "coder-0.0"), PlanPolicy(targets=("titan",))),
    "gateway_silent": (lab(), changed(lab_running(), "gateway-0.0", silent_s=31.0), PlanPolicy()),
    "node_left": (
        replace(desired(), nodes={**desired().nodes, **lab().nodes}, left=frozenset({NodeName("m4max")})),
        replace(lab_running(), routes=None, gateway=None, nodes={**empty().nodes, **lab_running().nodes}),
        PlanPolicy(),
    ),
    "drained": (drained("mono512"), running(drained("mono512"), lab_running()), PlanPolicy()),
    "drain_cut_short": (drained("coder"), lab_running(), PlanPolicy()),
    "drained_and_ended": (
        drained("coder"), without(running(drained("coder"), lab_running()), "coder-0.0"), PlanPolicy()
    ),
    "drained_and_replaced": (
        replace(lab(titan=TITAN, coder={**CODER, "model": "m18", "nodes": ["mono512"], "max_batch": 4}),
                drained=("titan",)),
        running(drained("titan"), lab_running()),
        PlanPolicy(),
    ),
    "estimates_that_do_not_fit": (
        undeclared(lab(coder={"model": "m3", "nodes": ["mono512"]}, tiny={"model": "m3", "nodes": ["mono512"]})),
        replace(two_machines(), facts={ModelName("m3"): replace(LLAMA, weights_bytes=300 << 30)}),
        PlanPolicy(),
    ),
    "model_that_cannot_be_shared": (
        lab(), replace(two_machines(), facts={ModelName("m66"): LLAMA}), PlanPolicy()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FLEET))
def test_plan_text_of_a_fleet(name, golden):
    plan = reconcile(*FLEET[name])
    golden.check(f"plans/{name}.txt", render(plan, "Stack world at 4e1c9d2 -> generation 18") + "\n")


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


def test_a_watcher_that_leaves_the_stack_is_stopped_when_everything_else_is_done():
    """It may be the watcher that carries the plan out."""
    gateway = {"node": "alpha", "port": 8000}
    healing = fleet_of({"coder": CODER}, gateway).model_copy(update={"heal": True})
    world = running(expand(healing, OWNER), three())
    plan = reconcile(expand(fleet_of({"coder": SWAPPED}, gateway), OWNER), world, PlanPolicy(heals=True))
    stop = next(action for action in plan.actions if action.id.startswith("stop:watcher"))
    assert set(stop.after) == {action.id for action in plan.actions} - {stop.id}


def test_a_swap_takes_nothing_down_before_the_new_model_is_there():
    assert _kinds(reconcile(*CASES["swap_to_a_missing_model"])) == [
        "Sync", "Drain", "Stop", "Start", "AwaitReady", "Publish",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["replicas_that_swap", "replicas_that_are_restarted"])
def test_a_replica_goes_down_for_its_successor_only_when_the_one_before_serves_again(name):
    kinds = [kind for kind in _kinds(reconcile(*FLEET[name])) if kind != "Sync"]
    assert kinds == ["Drain", "Stop", "Start", "AwaitReady", "Publish"] * 3


def test_a_watcher_is_never_replaced_by_what_it_carries_out_itself():
    world = running(expand(fleet_of({"coder": CODER}, {"node": "alpha"}, heal=True), OWNER), three())
    stack = fleet_of({"coder": CODER}, {"node": "alpha"}, heal=True)
    nodes = {**stack.nodes, NodeName("aaa"): Node(reach="local")}
    elsewhere = expand(stack.model_copy(update={"nodes": nodes}), OWNER)
    world = replace(world, nodes={**world.nodes, NodeName("aaa"): Reachable()})
    assert reconcile(elsewhere, world, WATCH).changes == ()
    assert [change.verb for change in reconcile(elsewhere, world).changes] == ["replace (swap)"]


@pytest.mark.parametrize(
    ("crashes", "kind"), [((30.0, 60.0, 95.0, 120.0, 300.0), "failed"), ((2.0, 20.0, 45.0), "hold")]
)
def test_nothing_is_done_for_a_gateway_that_is_not_started_now(crashes, kind):
    plan = reconcile(desired(), gateway_crashing(*crashes), WATCH)
    assert [change.kind for change in plan.changes] == [kind]
    assert plan.actions == ()


def test_a_group_that_serves_keeps_all_its_ranks_until_it_is_drained():
    order = execution_order(reconcile(*FLEET["group_of_which_only_the_first_rank_changes"]), seed=0)
    first_stop = next(index for index, action in enumerate(order) if isinstance(action, Stop))
    assert any(isinstance(action, Drain) for action in order[:first_stop])


def test_an_old_unit_that_may_be_routed_to_stays_while_the_gateway_cannot_be_seen():
    coder = {"model": "m18", "nodes": ["m4max"]}
    wanted = lab(titan=TITAN, coder=coder)
    world = lab_running(wanted)
    old = unit(lab_running(lab(titan=TITAN, coder={**coder, "max_batch": 4})), "coder-0.0")
    node = world.nodes[NodeName("m4max")]
    both = replace(node, units={**node.units, old.id: old})
    plan = reconcile(wanted, unseen(replace(world, nodes={**world.nodes, NodeName("m4max"): both}), "mono512"))
    assert not any(isinstance(action, Stop) for action in plan.actions)
    assert any("may route to what runs" in change.cause for change in plan.changes)


def test_the_command_of_who_has_a_port_is_one_short_line():
    program = PortHolder(4242, "python3 -c\nimport http.server\n" + "x" * 200)
    (conflict,) = reconcile(desired(), on_alpha(empty(), ports={8000: program})).conflicts
    assert "taken by pid 4242 (python3 -c import http.server xxx" in conflict
    assert "x ...); stop it or choose another port: gateway.port=8001" in conflict
    assert len(conflict) < 250


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
