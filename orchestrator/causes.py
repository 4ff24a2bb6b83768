"""Pure: the words of a plan: why a unit is replaced or goes, and what the gateway's routes change to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.groups import Slot, group_nodes
from orchestrator.observed import Observed, ObservedUnit
from schemas.base import Frozen, NodeName
from schemas.unit import ModelSpec


def difference(wanted: Sequence[DesiredUnit], old: ObservedUnit) -> str:
    """Say in which fields a slot's units differ from the one that fills its place."""
    if old.spec is None:
        return "its record cannot be read"
    new = next((unit.spec for unit in wanted if unit.spec.slot == old.slot), wanted[0].spec)
    is_single = len(wanted) == 1 and group_nodes(old.spec) == (old.spec.node,)
    if is_single and old.spec.node != new.node:
        return f"node {old.spec.node} -> {new.node}"
    changed = [f"{key} {_word(before)} -> {_word(after)}" for key, before, after in _changes(old.spec, new, old.port)]
    return ", ".join(changed) or "its specification is of an older kind"


def canary_difference(slot: Slot, first: ObservedUnit) -> str:
    """Say why a group that serves has to be judged again; empty where it was asked what the stack wants, or wants none.

    A group that was judged by an orchestrator which did not note what it had asked is taken for judged.
    """
    wanted, verdict = slot.first.canary, first.verdict
    if wanted is None or verdict is None:
        return ""
    if verdict.outcome == "off":
        return f"sharding.canary off -> long_tokens {wanted.long_tokens}; it serves meanwhile"
    if verdict.asked_tokens in (None, wanted.long_tokens):
        return ""
    return f"sharding.canary.long_tokens {verdict.asked_tokens} -> {wanted.long_tokens}; it serves meanwhile"


def _changes(before: Frozen, after: Frozen, old_port: int | None) -> Iterator[tuple[str, object, object]]:
    """Yield (key, old, new) for every field that differs, by key; the port is the one that was taken."""
    olds, news = vars(before), vars(after)
    if type(before) is type(after):
        changed = [key for key, old in olds.items() if news[key] != old]
    else:
        changed = [key for key in olds.keys() | news.keys() if olds.get(key) != news.get(key)]
    for key in sorted(changed):
        old, new = olds.get(key), news.get(key)
        if isinstance(old, Frozen) and isinstance(new, Frozen):
            yield from ((f"{key} {inner}", one, other) for inner, one, other in _changes(old, new, old_port))
        elif key == "port":
            yield key, old_port, new or "any"
        else:
            yield key, old, new


def _word(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, ModelSpec):
        return value.name
    if isinstance(value, Frozen):
        return _word(value.model_dump(mode="json", exclude_none=True))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_word(inner)}" for key, inner in sorted(value.items())) or "none"
    return "+".join(_word(part) for part in value) if isinstance(value, tuple | list) else str(value)


def routing_differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield `key old -> new` for every routing field that differs, by key."""
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield f"{key} {before.get(key, 'none')} -> {after.get(key, 'none')}"


def files_difference(desired: Desired, observed: Observed) -> Iterator[str]:
    """Yield which files the gateway composes instead of which, after a rollback or back from one."""
    if observed.routes is not None and observed.routes.conf != desired.files:
        yield f"files {observed.routes.conf or desired.owner} -> {desired.files or desired.owner}"


def removal(desired: Desired, node: NodeName) -> str:
    """Say why a unit that no slot wants has to go."""
    if not desired.units:
        return "the stack goes down"
    return f"node {node} left the stack" if node in desired.left else "no longer in the stack"
