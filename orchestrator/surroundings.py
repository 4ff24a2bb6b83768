"""Pure: what a plan does beside the slots: the gateway's reading and routes, silent nodes, helpers' models."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from orchestrator.causes import files_difference, routing_differences
from orchestrator.draft import REWIRE, Draft, action_id
from orchestrator.expand import Desired
from orchestrator.groups import GroupId, Slot, group_of
from orchestrator.helpers.compare import mismatches, to_pull
from orchestrator.observed import HelperSilent, Observed, Reachable, Unreachable
from orchestrator.plan import ActionId, Defer, Publish, Pull, Rewire, Withdraw
from orchestrator.policy import PlanPolicy
from orchestrator.scope import Scope
from schemas.base import NodeName
from schemas.unit import GATEWAY_SERVICE, slot_of

_SHOWN_ROUTING_CHANGES = 8
_NOT_ASKED = Unreachable("it was not asked")


def rewire(draft: Draft, desired: Desired, observed: Observed, *, starts_gateway: bool) -> None:
    """Have the gateway read the files, if it reads others or has read them otherwise.

    `starts_gateway`: this plan starts one, or keeps the one that runs.
    """
    if draft.gateway is None:
        return
    if observed.gateway is None and not starts_gateway:
        return  # nothing reads it, and nothing in this plan will
    cause = "first start"
    if observed.gateway is not None:
        differences = [
            *files_difference(desired, observed),
            *routing_differences(observed.gateway.routing, desired.routing),
        ]
        if not differences and not observed.gateway.is_current:
            differences = ["its last reading of the files failed"]
        if not differences:
            return
        hidden = len(differences) - _SHOWN_ROUTING_CHANGES
        shown = differences[:_SHOWN_ROUTING_CHANGES] + ([f"and {hidden} more"] if hidden > 0 else [])
        for text in shown:
            draft.change("rewire", GATEWAY_SERVICE, text)
        cause = "; ".join(differences)
    draft.add(Rewire(id=REWIRE, node=draft.gateway, cause=cause))


def withdraw_the_gone(
    draft: Draft,
    observed: Observed,
    slots: Mapping[GroupId, Slot],
    policy: PlanPolicy,
    in_scope: Collection[GroupId],
) -> None:
    """Take out of the routes what does not run and nothing in this plan brings back.

    It comes after everything that starts units: what the draft publishes is brought back.
    """
    if draft.gateway is None:
        return
    alive = {unit.id for slot in slots.values() for unit in slot.alive}
    published = [action.instance.unit for action in draft.actions.values() if isinstance(action, Publish)]
    starting = {group_of(slot_of(unit)): unit for unit in published}
    for instance in draft.published.values():
        node = observed.nodes.get(instance.node)
        is_gone = isinstance(node, Reachable) or instance.node in policy.assume_lost or node is None
        group = group_of(slot_of(instance.unit))
        if instance.unit in alive or not is_gone or (policy.targets and group not in in_scope):
            continue
        successor = starting.get(group)
        if successor is not None and (successor == instance.unit or instance.state == "replacing"):
            continue  # the new entry takes its place, and until then the gateway may hold requests
        cause = f"{instance.unit} is gone"
        draft.change("rewire", GATEWAY_SERVICE, cause)
        name = action_id("withdraw", instance.unit)
        draft.add(Withdraw(id=name, node=draft.gateway, cause=cause, unit=instance.unit))


def defer_unreachable(
    draft: Draft,
    desired: Desired,
    observed: Observed,
    slots: Mapping[GroupId, Slot],
    policy: PlanPolicy,
    in_scope: Collection[GroupId],
) -> None:
    """Say of every node that did not answer that nothing is known of it."""
    for name in sorted({*desired.nodes, *observed.nodes}):
        node = observed.nodes.get(name, _NOT_ASKED)
        if isinstance(node, Reachable) or name in policy.assume_lost:
            if name in desired.left and not isinstance(node, Reachable):
                draft.notes.append(f"{name} left the stack and is assumed lost: it is not looked at any more")
            continue
        if policy.targets and not any(name in slots[group].nodes() for group in in_scope):
            continue
        draft.change("defer", name, f"cannot be reached: {node.reason}; what runs there is unknown")
        draft.add(Defer(id=ActionId(f"defer:{name}"), node=name, cause=node.reason))


def pull_missing(
    draft: Draft, desired: Desired, observed: Observed, scope: Scope, gateway_node: NodeName | None
) -> None:
    """Have helpers load the models that they are to have; who only has a URL is asked from `gateway_node`."""
    for name, helper in desired.helpers.items():
        seen = observed.helpers.get(name)
        if name not in scope.helpers or seen is None:
            continue
        node = helper.node if helper.node is not None else gateway_node
        target = name if helper.node is None else f"{helper.node}/{name}"
        if isinstance(seen, HelperSilent):
            if any(model.ensure for model in helper.models.values()):
                draft.change("defer", target, f"does not answer: {seen.reason}; what it has is unknown")
            continue
        for model in to_pull(helper, seen):
            cause = f"{model} is missing"
            draft.change("pull", target, cause)
            if node is not None:
                pull = ActionId(f"pull:{name}/{model}")
                draft.add(Pull(id=pull, node=node, cause=cause, helper=name, model=model))


def helper_notes(desired: Desired, observed: Observed) -> Iterator[str]:
    """Tell where a helper is not what the files say that it is."""
    for name, helper in desired.helpers.items():
        seen = observed.helpers.get(name)
        if seen is not None:
            yield from mismatches(name, helper, seen)
