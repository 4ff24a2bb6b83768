"""Pure: the words of a plan: why a unit is replaced, what the gateway's routes change to, what roles can lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.expand import Desired, DesiredUnit
from orchestrator.observed import Observed, ObservedUnit
from orchestrator.placement import memory_use


def difference(wanted: DesiredUnit, old: ObservedUnit) -> str:
    """Say in which fields a unit differs from the one that fills its slot."""
    if old.spec is None:
        return "its record cannot be read"
    if old.spec.node != wanted.node:
        return f"node {old.spec.node} -> {wanted.node}"
    before, after = (_flat(spec.model_dump(mode="json")) for spec in (old.spec, wanted.spec))
    if before.get("port") != after.get("port"):
        before["port"], after["port"] = old.port, wanted.spec.port or "any"
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


def routing_notes(desired: Desired) -> Iterator[str]:
    """Yield what each role can lose, where that is all it has."""
    for name, role in sorted(desired.roles.items()):
        if role.endpoints == 1:
            behind = "no fallback" if role.fallback == "none" else f"fallback {role.fallback}"
            yield f"{name} has one endpoint and {behind}"


def memory_notes(desired: Desired, observed: Observed) -> Iterator[str]:
    """Yield how much of each node's memory the stack's models need."""
    for name, needed, capacity in memory_use(desired, observed):
        if needed:
            yield f"{name} {needed:.1f} of {'?' if capacity is None else f'{capacity:.1f}'} GiB"
