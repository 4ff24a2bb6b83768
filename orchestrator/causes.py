"""Pure: the words of a plan: why a unit is replaced or goes, and what the gateway's routes change to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.groups import group_nodes
from orchestrator.observed import Observed, ObservedUnit
from schemas.base import NodeName
from schemas.unit import WatcherSpec


def difference(wanted: Sequence[DesiredUnit], old: ObservedUnit) -> str:
    """Say in which fields a slot's units differ from the one that fills its place."""
    if old.spec is None:
        return "its record cannot be read"
    new = next((unit.spec for unit in wanted if unit.spec.slot == old.slot), wanted[0].spec)
    is_single = len(wanted) == 1 and group_nodes(old.spec) == (old.spec.node,)
    if is_single and old.spec.node != new.node:
        return f"node {old.spec.node} -> {new.node}"
    before, after = (_flat(spec.model_dump(mode="json")) for spec in (old.spec, new))
    if before.get("port") != after.get("port") and not isinstance(new, WatcherSpec):
        before["port"], after["port"] = old.port, new.port or "any"
    changed = [
        f"{key} {_word(before.get(key))} -> {_word(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return ", ".join(changed) or "its specification is of an older kind"


def _flat(tree: dict[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update({f"{key} {inner}": child for inner, child in _flat(value).items()})
        elif isinstance(value, list):
            flat[key] = "+".join(str(part) for part in value)
        else:
            flat[key] = value
    return flat


def _word(value: object) -> str:
    return "none" if value is None else str(value)


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
