"""What must be true of a world, said without knowing how plans are made."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.memory import KnownMemory
from orchestrator.observed import Observed, ObservedUnit, Reachable
from orchestrator.plan import Plan
from orchestrator.policy import PlanPolicy
from schemas.unit import EngineSpec, GatewaySpec, WatcherSpec, WorkerSpec, slot_of
from tests.properties.worlds import address

EVERYTHING = PlanPolicy()


def group_of(unit: str) -> str:
    """Return the group of a unit or slot: `coder-0` of `coder-0.1@abc`."""
    return slot_of(unit).rpartition(".")[0]


def alive(world: Observed) -> list[ObservedUnit]:
    return [unit for unit in world.units() if unit.alive]


def groups(desired: Desired) -> dict[str, list[DesiredUnit]]:
    found: dict[str, list[DesiredUnit]] = {}
    for unit in desired.units.values():
        found.setdefault(group_of(unit.id), []).append(unit)
    return found


def crossed(units: Iterable[DesiredUnit | ObservedUnit]) -> set[str]:
    """Return all nodes that groups reach over."""
    names: set[str] = set()
    for unit in units:
        names.add(unit.node)
        if isinstance(unit.spec, WorkerSpec) and unit.spec.group is not None:
            names |= set(unit.spec.group.nodes)
    return names


def goal_failures(
    desired: Desired, world: Observed, policy: PlanPolicy = EVERYTHING, plan: Plan | None = None
) -> list[str]:
    """Say what is not as the stack wants it.

    Excused is what cannot be known or done, and only where the world shows it: nodes that did not answer, what ended
    too often, what has no memory; that has to be said by the plan. Out of scope is what the policy does not ask for.
    """
    seen = {name for name, node in world.nodes.items() if isinstance(node, Reachable)}
    wanted = groups(desired)
    living: dict[str, list[ObservedUnit]] = {}
    for unit in alive(world):
        living.setdefault(group_of(unit.id), []).append(unit)
    stated = {c.target.split("/")[-1] for c in plan.changes if c.kind in ("defer", "hold", "failed")} if plan else set()
    stated = {group_of(target) if "." in target else target for target in stated}
    failures: list[str] = []
    routes = {instance.unit: instance for instance in world.routes.instances} if world.routes else {}
    gateway = next((u.node for u in desired.units.values() if isinstance(u.spec, GatewaySpec)), None)
    routable = gateway in seen
    for group in sorted({*wanted, *living}):
        there, should = living.get(group, []), wanted.get(group, [])
        unseen = crossed([*should, *there]) - seen
        names = {group, group.rpartition("-")[0], *crossed([*should, *there])}
        if policy.targets and not names.intersection(policy.targets):
            continue
        if unseen - policy.assume_lost:
            continue
        if unseen & {unit.node for unit in should}:
            continue  # its own node is lost
        if gateway is not None and not routable and gateway not in policy.assume_lost and there:
            continue
        if group in stated:
            failures += _unexcused(group, should, there, desired, world, policy)
            continue
        ids = {unit.id: unit.node for unit in should}
        failures += [f"{u.id} should not run" for u in there if ids.get(u.id) != u.node]
        running = {unit.id: unit for unit in there}
        failures += [f"{unit.id} does not run" for unit in should if unit.id not in running]
        failures += [f"{u.id} is silent" for u in there if u.silent_s > 20]
        if len(should) > 1 and len({unit.launch for unit in there}) > 1:
            failures.append(f"{group} is of several launches")
        first = min(should, key=lambda u: u.spec.slot, default=None)
        if first is None or first.id not in running or isinstance(first.spec, WatcherSpec):
            continue
        unit = running[first.id]
        if not unit.ready:
            failures.append(f"{unit.id} is not ready")
        if not isinstance(first.spec, WorkerSpec | EngineSpec) or not routable:
            continue
        entry = routes.get(unit.id)
        state = "draining" if is_drained(desired, unit) else "ready"
        reach = "ssh" if "lan" not in desired.nodes[unit.node].addresses else "lan"
        if entry is None or entry.state != state:
            failures.append(f"{unit.id} is not routed as {state}")
        elif entry.url != f"http://{address(unit.node, str(gateway), reach)}:{unit.port}":
            failures.append(f"{unit.id} is routed to {entry.url}")
    if routable and not policy.targets:
        running_ids = {unit.id for unit in alive(world)}
        failures += [
            f"{unit} is routed and gone"
            for unit, entry in routes.items()
            if (entry.node in seen or entry.node in policy.assume_lost) and unit not in running_ids
        ]
        gateways = [unit for unit in alive(world) if isinstance(unit.spec, GatewaySpec)]
        is_up = any(unit.ready and not unit.silent_s for unit in gateways)
        if is_up and (world.gateway is None or world.gateway.routing != desired.routing):
            failures.append("the gateway serves other routes")
    return failures


def _unexcused(
    group: str,
    should: list[DesiredUnit],
    there: list[ObservedUnit],
    desired: Desired,
    world: Observed,
    policy: PlanPolicy,
) -> list[str]:
    """Say why a group that the plan did not bring up could have been."""
    ids = {unit.id for unit in should}
    half = [unit for unit in there if unit.id in ids]
    if half and len(half) < len(should):
        return [f"{group} is not started, and half of it runs"]
    ends = [unit.crashes_s for unit in world.units() if unit.id in ids and not unit.alive]
    if any(ends):
        return []
    wanted = {(unit.node, port) for unit in should if (port := getattr(unit.spec, "port", None)) is not None}
    if wanted & {(unit.node, unit.port) for unit in world.units() if unit.id not in ids}:
        return []  # who has its port stays for now
    known = KnownMemory(desired, world)
    if {unit.node for unit in alive(world) if known.of(unit) is None} & {unit.node for unit in should}:
        return []  # what takes nobody knows how much is left all that the one before it had
    short = any(free_gib(world, desired, node) < need for node, need in needs(should, desired, world).items())
    return [] if short else [f"{group} is not started, and there is room for it"]


def needs(units: list[DesiredUnit], desired: Desired, world: Observed) -> dict[str, float]:
    """Return what units need on each node, as far as it is known."""
    known = KnownMemory(desired, world)
    found: dict[str, float] = {}
    for unit in units:
        need = known.of(ObservedUnit(unit.id, unit.node, alive=True, spec=unit.spec))
        found[unit.node] = found.get(unit.node, 0.0) + (need or 0.0)
    return found


def free_gib(world: Observed, desired: Desired, node: str) -> float:
    """Return what is left on a node when everything that still loads has loaded.

    Of what the machine has and of what the files say that the stack may have of it: the smaller.
    """
    seen = world.nodes[node]  # type: ignore[index]
    assert isinstance(seen, Reachable)
    known = KnownMemory(desired, world)
    living = [unit for unit in seen.units.values() if unit.alive]
    left = [float("inf")]
    if seen.memory_available_gib is not None:
        loading = [unit for unit in living if not unit.ready and not unit.silent_s]
        left.append(seen.memory_available_gib - sum(known.of(unit) or 0.0 for unit in loading))
    declared = desired.nodes.get(node)  # type: ignore[call-overload]
    if declared is not None and declared.memory_gib is not None:
        left.append(declared.memory_gib - declared.reserve_gib - sum(known.of(unit) or 0.0 for unit in living))
    return min(left)


def is_drained(desired: Desired, unit: ObservedUnit) -> bool:
    """Tell whether somebody took a unit, its group, service or one of its nodes out of the routes."""
    group = group_of(unit.id)
    return bool(set(desired.drained) & {group, group.rpartition("-")[0], unit.id, slot_of(unit.id), *crossed([unit])})


def taken_ports(world: Observed) -> list[tuple[str, int]]:
    """Return every port in use by our units; gateways share theirs, so each counts once."""
    gateways = {(unit.node, unit.port) for unit in alive(world) if isinstance(unit.spec, GatewaySpec) and unit.port}
    others = [unit for unit in alive(world) if not isinstance(unit.spec, GatewaySpec)]
    ports = [(unit.node, port) for unit in others for port in (unit.port, unit.link_port, unit.control_port) if port]
    return [*ports, *gateways]


def served(world: Observed) -> set[str]:
    """Return the services that something ready and routed answers for."""
    ready = {unit.id for unit in alive(world) if unit.ready}
    entries = world.routes.instances if world.routes else ()
    return {entry.service for entry in entries if entry.state == "ready" and entry.unit in ready}
