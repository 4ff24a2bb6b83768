"""Pure: what a drained name covers, and the plan that takes instances out of the routes or puts them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from orchestrator.expand import Desired
from orchestrator.groups import GATEWAY_GROUP, Slot, group_nodes, group_of, service_of, slots_of
from orchestrator.ladders import Rung, ladder
from orchestrator.observed import HelperSilent, Observed, Reachable
from orchestrator.plan import Action, ActionId, Change, Drain, Plan, Publish
from orchestrator.policy import PlanPolicy
from orchestrator.scope import lost_problems
from schemas.base import NodeName, UnitId
from schemas.problems import nearest
from schemas.routes import Instance
from schemas.unit import AnyUnitSpec, slot_of

DEFAULT_DRAIN_S = 30.0
"""For an instance whose service has left the files."""


def covers(names: Iterable[str], unit: UnitId, nodes: Iterable[NodeName]) -> bool:
    """Tell whether one of the names means an instance, given the nodes of all its ranks."""
    meant = {name.rpartition("/")[2] for name in names}
    return bool(meant) and not meant.isdisjoint(names_of(unit, nodes))


def names_of(unit: UnitId, nodes: Iterable[NodeName]) -> frozenset[str]:
    """Return what an instance can be called by: its nodes, service, group, slots of all its ranks, and unit id."""
    ranks, group = list(nodes), group_of(slot_of(unit))
    slots = (f"{group}.{rank}" for rank in range(max(1, len(ranks))))
    return frozenset({unit, slot_of(unit), group, service_of(group), *ranks, *slots})


def is_drained(desired: Desired, unit: UnitId, spec: AnyUnitSpec | None) -> bool:
    """Tell whether the gateway should send a unit nothing because somebody drained it."""
    return covers(desired.drained, unit, group_nodes(spec))


def is_slot_drained(desired: Desired, slot: Slot) -> bool:
    """Tell whether what is wanted in a slot is drained; where nothing is wanted, what lives there."""
    if slot.wanted:
        return is_drained(desired, slot.first.id, slot.first.spec)
    return any(is_drained(desired, unit.id, unit.spec) for unit in slot.alive)


def drained_notes(desired: Desired) -> Iterator[str]:
    """Yield for every drained name that it is, and the command that ends it."""
    for name in desired.drained:
        yield drained_note(desired.stack, name)


def drained_note(stack: str, name: str) -> str:
    """Return that a name is drained, and the command that ends it."""
    return f"{name} is drained; orchestrate drain {stack} {name} --undo"


def drain_plan(
    desired: Desired, observed: Observed, name: str, *, undo: bool, policy: PlanPolicy | None = None
) -> tuple[Desired, Plan]:
    """Return the wish with a name drained, or no longer, and the plan that changes only the routes.

    What else differs from the files is left to the next apply. Of the policy only `assume_lost` counts.
    """
    draft = _Routes(desired, observed, lost_problems(policy, desired, observed) if policy is not None else ())
    if undo:
        return draft.undo(name)
    return draft.drain(name)


class _Routes:
    """The routes of one stack as they are seen, and who serves by them."""

    def __init__(self, desired: Desired, observed: Observed, problems: tuple[str, ...]) -> None:
        self._problems = problems
        self._desired = desired
        self._observed = observed
        self._instances: tuple[Instance, ...] = () if observed.routes is None else observed.routes.instances
        self._slots = slots_of(desired, observed)
        self._specs: dict[UnitId, AnyUnitSpec] = {unit.id: unit.spec for unit in desired.units.values()}
        self._specs |= {unit.id: unit.spec for unit in observed.units() if unit.spec is not None}

    def drain(self, name: str) -> tuple[Desired, Plan]:
        drained = tuple(sorted({*self._desired.drained, name}))
        problems = [*self._unknown(name), *self._unwritable()]
        chosen = [i for i in self._instances if i.state == "ready" and covers((name,), i.unit, self._nodes(i))]
        cause = f"{name} is taken out of the routes"
        actions = tuple(
            Drain(
                id=ActionId(f"drain:{instance.unit}"),
                node=instance.node,
                cause=cause,
                unit=instance.unit,
                drain_s=self._drain_s(instance),
            )
            for instance in chosen
        )
        changes = [Change("drain", f"{i.node}/{slot_of(i.unit)}", cause) for i in chosen]
        if not changes and name not in self._desired.drained:
            changes = [Change("drain", name, "nothing of it is routed; it stays out when it is ready")]
        return self._result(drained, changes, actions, problems)

    def undo(self, name: str) -> tuple[Desired, Plan]:
        before = self._desired.drained
        bare = name.rpartition("/")[2]
        ended = {drained for drained in before if drained == name or drained.rpartition("/")[2] == bare}
        drained = tuple(other for other in before if other not in ended)
        if not ended:
            return self._result(before, [], (), [f"{name} is not drained{_hint(name, before, 'drained are')}"])
        cause = f"{name} is drained no more"
        changes, actions = [Change("undrain", name, cause)], []
        for instance in self._instances:
            nodes = self._nodes(instance)
            is_free = covers(ended, instance.unit, nodes) and not covers(drained, instance.unit, nodes)
            if instance.state == "draining" and is_free and self._is_ready(instance):
                ready = instance.model_copy(update={"state": "ready"})
                publish = ActionId(f"publish:{instance.unit}")
                actions.append(Publish(id=publish, node=instance.node, cause=cause, instance=ready))
        return self._result(drained, changes, tuple(actions), self._unwritable())

    def _result(
        self, drained: tuple[str, ...], changes: list[Change], actions: tuple[Action, ...], problems: list[str]
    ) -> tuple[Desired, Plan]:
        wish = replace(self._desired, drained=drained)
        nodes = self._observed.nodes.values()
        plan = Plan(
            stack=wish.stack,
            changes=tuple(changes),
            actions=actions,
            conflicts=(*self._problems, *problems),
            routing=tuple(self._left_without(drained)) if any(c.kind == "drain" for c in changes) else (),
            notes=tuple(drained_notes(wish)),
            nodes_seen=sum(isinstance(node, Reachable) for node in nodes),
            nodes=len(self._observed.nodes),
        )
        return wish, plan

    def _left_without(self, drained: tuple[str, ...]) -> Iterator[str]:
        """Yield the roles that something answers for now, and nothing afterwards."""
        before = [i for i in self._instances if i.state == "ready"]
        after = [i for i in before if not covers(drained, i.unit, self._nodes(i))]
        for name, role in sorted(self._desired.roles.items()):
            rungs = ladder(name, self._desired.roles)
            if any(self._answers(rung, before) for rung in rungs) and not any(self._answers(r, after) for r in rungs):
                yield f"{name} is left without anything that answers, {role.fallback}"

    def _answers(self, rung: Rung, ready: list[Instance]) -> bool:
        if rung.service is not None:
            return any(instance.service == rung.service for instance in ready)
        return rung.helper is not None and not isinstance(self._observed.helpers.get(rung.helper), HelperSilent)

    def _unknown(self, name: str) -> list[str]:
        known: set[str] = set()
        for unit, spec in self._specs.items():
            if service_of(group_of(slot_of(unit))) in self._services():
                known |= names_of(unit, group_nodes(spec))
        for instance in self._instances:
            known |= names_of(instance.unit, self._nodes(instance))
        if name.rpartition("/")[2] in known:
            return []
        shown = {word for word in known if "@" not in word}
        return [f"{name}: nothing that the gateway calls is called so{_hint(name, shown, 'there are')}"]

    def _services(self) -> set[str]:
        return {slot.service for slot in self._slots.values() if slot.serves_model}

    def _unwritable(self) -> list[str]:
        gateway = self._slots.get(GATEWAY_GROUP)
        if self._observed.routes is None or gateway is None or not gateway.wanted:
            return [f"nothing is routed yet; first: orchestrate apply {self._desired.stack}"]
        node = gateway.first.node
        if not isinstance(self._observed.nodes.get(node), Reachable):
            return [f"the routes cannot be written: the gateway's node {node} cannot be reached"]
        return []

    def _nodes(self, instance: Instance) -> tuple[NodeName, ...]:
        return group_nodes(self._specs.get(instance.unit)) or (instance.node,)

    def _drain_s(self, instance: Instance) -> float:
        units = self._desired.units.values()
        found = (unit.drain_s for unit in units if service_of(group_of(unit.spec.slot)) == instance.service)
        return next(found, DEFAULT_DRAIN_S)

    def _is_ready(self, instance: Instance) -> bool:
        slot = self._slots.get(group_of(slot_of(instance.unit)))
        return slot is not None and any(u.id == instance.unit and slot.can_serve(u) for u in slot.alive)


def _hint(name: str, valid: Iterable[str], words: str) -> str:
    names = sorted(valid)
    close = nearest(name, names)
    if close is not None:
        return f"; did you mean {close}?"
    return f"; {words}: {', '.join(names[:20])}" if names else ""
