"""Pure: what `--target` and `--assume-lost` name, and which part of a plan that is."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.expand import Desired
from orchestrator.groups import GATEWAY_GROUP, GroupId, Slot
from orchestrator.observed import Observed, Reachable, Unreachable
from orchestrator.policy import PlanPolicy
from schemas.base import HelperName, NodeName
from schemas.problems import nearest
from schemas.unit import GATEWAY_SERVICE


@dataclass(frozen=True, slots=True)
class Scope:
    """What a plan may change."""

    groups: frozenset[GroupId]
    helpers: frozenset[HelperName]
    rewires: bool
    """The gateway's routes are part of it."""
    restarts: frozenset[GroupId] = frozenset()
    problems: tuple[str, ...] = ()
    """Names that mean nothing, each with what was probably meant."""


def scope_of(policy: PlanPolicy, desired: Desired, observed: Observed, slots: Mapping[GroupId, Slot]) -> Scope:
    """Return what the targets of a policy select; everything where there are none."""
    if not policy.targets and not policy.restart:
        everything = frozenset(slots)
        return Scope(everything, frozenset(desired.helpers), True, problems=lost_problems(policy, desired, observed))
    named: dict[str, tuple[set[GroupId], set[HelperName]]] = {name: (set(), set()) for name in desired.nodes}
    named[GATEWAY_SERVICE] = ({GATEWAY_GROUP} & set(slots), set())
    for group, slot in slots.items():
        for name in _names(slot):
            named.setdefault(name, (set(), set()))[0].add(group)
    for name, helper in desired.helpers.items():
        for key in (name, *([helper.node] if helper.node is not None else [])):
            named.setdefault(key, (set(), set()))[1].add(name)
    problems = [*lost_problems(policy, desired, observed)]
    groups: set[GroupId] = set()
    helpers: set[HelperName] = set()
    restarts: set[GroupId] = set()
    for target in (*policy.targets, *policy.restart):
        found = named.get(target) or named.get(target.rpartition("/")[2])
        if found is None:
            problems.append(f"{target}: no slot, service, node or helper is called so{hint(target, named)}")
            continue
        groups |= found[0]
        helpers |= found[1]
        restarts |= found[0] if target in policy.restart else set()
    if not policy.targets:
        groups, helpers = set(slots), set(desired.helpers)
    return Scope(frozenset(groups), frozenset(helpers), GATEWAY_GROUP in groups, frozenset(restarts), tuple(problems))


def _names(slot: Slot) -> set[str]:
    units = {*(unit.spec.slot for unit in slot.wanted), *(unit.slot for unit in slot.alive)}
    return {slot.id, slot.service, *units, *slot.nodes()}


def lost_problems(policy: PlanPolicy, desired: Desired, observed: Observed) -> tuple[str, ...]:
    """Return what is wrong with the nodes that are said to be lost: they are none, or they answer."""
    problems = []
    for name in sorted(policy.assume_lost):
        if name not in desired.nodes:
            problems.append(f"--assume-lost {name}: no node is called so{hint(name, desired.nodes)}")
        elif isinstance(observed.nodes.get(name), Reachable):
            problems.append(f"--assume-lost {name}: the node answers; leave the option out")
    return tuple(problems)


def no_longer_lost(
    lost: Iterable[NodeName], nodes: Container[NodeName], observed: Mapping[NodeName, Reachable | Unreachable]
) -> dict[NodeName, str]:
    """Return which nodes are not to be assumed lost any longer, with the reason; `nodes` are those looked at."""
    ended = {}
    for name in lost:
        if isinstance(observed.get(name), Reachable):
            ended[name] = f"{name} answers: it is not assumed to be lost any more"
        elif name not in nodes:
            ended[name] = f"{name} has left the files: it is not assumed to be lost any more"
    return ended


def hint(name: str, valid: Iterable[str]) -> str:
    """Say what was probably meant by a name that means nothing, or what there is."""
    close = nearest(name, valid)
    return f"; did you mean {close}?" if close is not None else f"; there are: {', '.join(sorted(valid)[:20])}"
