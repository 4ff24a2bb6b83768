"""Pure: what one action does to the world, as far as a plan can see it. The tests run whole plans on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Literal

from orchestrator.expand import Desired
from orchestrator.memory import KnownMemory
from orchestrator.observed import HelperSeen, Observed, ObservedUnit, OnDemandSeen, Reachable
from orchestrator.plan import (
    Action,
    AwaitReady,
    Defer,
    Drain,
    Placed,
    Provision,
    Publish,
    Pull,
    Reference,
    Rewire,
    Start,
    Stop,
    Sync,
    Unload,
    Withdraw,
)
from schemas.admin import ConfigReport
from schemas.base import HelperName, ModelName, NodeName, UnitId
from schemas.on_demand import OnDemandReport
from schemas.routes import Instance, Routes
from schemas.unit import GatewaySpec, WatcherSpec, is_group, slot_of
from schemas.verdict import Verdict


def apply_action(action: Action, desired: Desired, observed: Observed) -> Observed:
    """Return the world after one successful action."""
    match action:
        case Provision(node=node):
            return _with_node(observed, node, replace(_reachable(observed, node), is_provisioned=True))
        case Pull(helper=helper, model=name):
            return _pulled(observed, helper, name)
        case Sync(node=node, model=model, form=form):
            seen = _reachable(observed, node)
            return _with_node(observed, node, replace(seen, models=seen.models | {(ModelName(model.name), form)}))
        case Reference(model=model, long_tokens=long_tokens):
            return replace(observed, references=observed.references | {(ModelName(model.name), long_tokens)})
        case Start(units=units):
            launch = _next_launch(action, observed)
            for placed in units:
                observed = started(observed, desired, placed, launch)
            return observed
        case AwaitReady(node=node, unit=unit_id, others=others):
            after = observed
            for where, rank in ((node, unit_id), *others):
                after = _loaded(after, desired, where, rank)
            unit = _reachable(after, node).units[unit_id]
            if is_group(unit.spec):
                unit = replace(unit, verdict=_verdict(action))
                after = _with_unit(after, node, unit)
            return replace(after, gateway=report(desired)) if isinstance(unit.spec, GatewaySpec) else after
        case Publish(instance=instance):
            slot = slot_of(instance.unit)
            kept = {
                unit: entry
                for unit, entry in _instances(observed).items()
                if entry.state != "replacing" or slot_of(unit) != slot
            }
            return _with_routes(observed, desired, {**kept, instance.unit: instance})
        case Drain(unit=unit_id, is_replaced=is_replaced):
            entries = _instances(observed)
            if unit_id in entries:
                state = "replacing" if is_replaced else "draining"
                entries[unit_id] = entries[unit_id].model_copy(update={"state": state})
            return _with_routes(observed, desired, entries)
        case Stop(node=node, unit=unit_id):
            return _stopped(observed, desired, node, unit_id)
        case Unload(node=node, unit=unit_id):
            return _unloaded(observed, desired, node, unit_id)
        case Withdraw(unit=unit_id):
            return _with_routes(observed, desired, _without(_instances(observed), unit_id))
        case Rewire():
            after = _with_routes(observed, desired, _instances(observed))
            return after if after.gateway is None else replace(after, gateway=report(desired))
        case Defer():
            return observed


def _verdict(action: AwaitReady) -> Verdict:
    if action.long_tokens is None:
        return Verdict(outcome="off")
    outcome: Literal["limited", "passed"] = "limited" if action.is_limited else "passed"
    return Verdict(outcome=outcome, longest=action.long_tokens, asked_tokens=action.long_tokens)


def started(observed: Observed, desired: Desired, placed: Placed, launch: str) -> Observed:
    """Return the world after one unit was started; one that lives already is left as it is."""
    unit = placed.unit
    before = _reachable(observed, unit.node).units.get(unit.id)
    if before is not None and before.alive:
        return observed
    new = ObservedUnit(
        unit.id,
        unit.node,
        alive=True,
        ready=isinstance(unit.spec, WatcherSpec),
        phase="starting",
        spec=unit.spec,
        port=placed.port,
        owner=desired.owner,
        launch=launch,
        link_port=placed.link_port,
        control_port=placed.control_port,
    )
    return _with_unit(observed, unit.node, new)


def _next_launch(action: Start, observed: Observed) -> str:
    """Return a name that no unit seen was launched under."""
    known = {unit.launch for unit in observed.units()}
    return next(name for n in count(1) if (name := f"{action.id}#{n}") not in known)


def _loaded(observed: Observed, desired: Desired, node: NodeName, unit_id: UnitId) -> Observed:
    """Return the world after a unit has loaded its model into its node's memory."""
    unit = _reachable(observed, node).units[unit_id]
    if unit.ready:
        return observed
    after = _with_unit(observed, node, replace(unit, ready=True, phase="running"))
    return with_memory_taken(after, node, KnownMemory(desired, observed).of(unit) or 0.0)


def _unloaded(observed: Observed, desired: Desired, node: NodeName, unit_id: UnitId) -> Observed:
    """Return the world after a model that was loaded on demand was dropped."""
    unit = _reachable(observed, node).units[unit_id]
    given = KnownMemory(desired, observed).held(unit) or 0.0
    cold = replace(unit, demand=OnDemandSeen("cold", OnDemandReport(since_s=0.0)))
    return with_memory_taken(_with_unit(observed, node, cold), node, -given)


def with_memory_taken(observed: Observed, node: NodeName, amount_gib: float) -> Observed:
    """Return the world with so much less memory available on a node; more, where it is negative."""
    seen = _reachable(observed, node)
    if seen.memory_available_gib is None:
        return observed
    return _with_node(observed, node, replace(seen, memory_available_gib=seen.memory_available_gib - amount_gib))


def _pulled(observed: Observed, helper: HelperName, model: str) -> Observed:
    seen = observed.helpers[helper]
    if not isinstance(seen, HelperSeen):
        raise TypeError(f"a pull was planned on {helper}, which did not answer")
    return replace(observed, helpers={**observed.helpers, helper: replace(seen, present=seen.present | {model})})


def _stopped(observed: Observed, desired: Desired, node: NodeName, unit_id: UnitId) -> Observed:
    unit = _reachable(observed, node).units.get(unit_id)
    if unit is None or not unit.alive:
        return observed
    after = _with_unit(observed, node, replace(unit, alive=False, ready=False, phase="exited", exit="exit code 0"))
    if unit.ready:
        after = with_memory_taken(after, node, -(KnownMemory(desired, observed).of(unit) or 0.0))
    entry = _instances(after).get(unit_id)
    if entry is not None and entry.state != "replacing":
        after = _with_routes(after, desired, _without(_instances(after), unit_id))
    others = [other for other in after.units() if other.alive and other.ready and isinstance(other.spec, GatewaySpec)]
    return after if others else replace(after, gateway=None)


def _reachable(observed: Observed, node: NodeName) -> Reachable:
    seen = observed.nodes[node]
    if not isinstance(seen, Reachable):
        raise TypeError(f"an action was planned on {node}, which did not answer")
    return seen


def _with_node(observed: Observed, name: NodeName, node: Reachable) -> Observed:
    return replace(observed, nodes={**observed.nodes, name: node})


def _with_unit(observed: Observed, name: NodeName, unit: ObservedUnit) -> Observed:
    node = _reachable(observed, name)
    return _with_node(observed, name, replace(node, units={**node.units, unit.id: unit}))


def _instances(observed: Observed) -> dict[UnitId, Instance]:
    return {instance.unit: instance for instance in observed.routes.instances} if observed.routes else {}


def _without(instances: Mapping[UnitId, Instance], unit: UnitId) -> dict[UnitId, Instance]:
    return {key: value for key, value in instances.items() if key != unit}


def _with_routes(observed: Observed, desired: Desired, instances: Mapping[UnitId, Instance]) -> Observed:
    generation = observed.routes.generation if observed.routes is not None else 1
    routes = Routes(
        stack=desired.stack,
        generation=generation,
        overrides=desired.overrides,
        instances=tuple(instances[unit] for unit in sorted(instances)),
        drained=desired.drained,
    )
    return replace(observed, routes=routes)


def report(desired: Desired) -> ConfigReport:
    """Return what a gateway that serves the desired routes says."""
    return ConfigReport(
        stack=desired.stack,
        generation=1,
        revision=None,
        routing_digest="",
        routing=desired.routing,
        is_current=True,
        loaded_at=0.0,
        reloads=1,
        failed_reloads=0,
        pid=1,
        endpoints=(),
    )
