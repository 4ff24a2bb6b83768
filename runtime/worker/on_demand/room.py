"""Pure: which idle models make room for one that is asked for, and how long a load will take.

The on-demand workers of a node share what its other services leave: a budget. A model counts with what it may need,
from the moment its load begins until its memory was given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.on_demand import Allotment

GIB = 1 << 30
BYTES_PER_S = 1e9
"""How fast weights are taken to come from a disk where no load of the model was measured: below most NVMe disks."""
START_S = 2.0
"""A load's part that does not grow with the model: the tokenizer, the first token."""
SLOWEST_START_S = 600.0
SLOWEST_BYTES_PER_S = 2e7
"""A load that is slower than both is stuck: a fifth of what a network of 1 Gbit/s brings, and ten minutes beside it
for kernels that are compiled and memory that is swapped."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker that holds memory."""

    worker: str
    """Its name in the registry."""
    service: str
    memory_bytes: int
    """What it may need, in all."""
    used_at: float
    """When it was last used, seconds since the epoch."""
    is_idle: bool
    """It is loaded, and no request runs or waits there."""


def to_evict(holders: Sequence[Holder], need_bytes: int, budget_bytes: int) -> tuple[Holder, ...] | None:
    """Return who gives its memory back so that `need_bytes` fit: the least recently used idle ones, and not one more.

    None where all that are idle are not enough; then none of them is asked.
    """
    missing = sum(holder.memory_bytes for holder in holders) + need_bytes - budget_bytes
    found: list[Holder] = []
    for holder in sorted(holders, key=lambda one: (one.used_at, one.worker)):
        if missing <= 0:
            break
        if holder.is_idle and holder.memory_bytes > 0:
            found.append(holder)
            missing -= holder.memory_bytes
    if missing > 0:
        return None
    # A large one at the end may make smaller ones before it needless: the most recently used of them stay.
    for holder in reversed(found[:-1]):
        if missing + holder.memory_bytes <= 0:
            found.remove(holder)
            missing += holder.memory_bytes
    return tuple(found)


def too_much(holders: Sequence[Holder], budget_bytes: int) -> tuple[Holder, ...]:
    """Return who gives its memory back since less is left to all of them than they hold, in use or not.

    All that are idle where that is not enough: the rest follows when it is idle.
    """
    chosen = to_evict(holders, 0, budget_bytes)
    return tuple(holder for holder in holders if holder.is_idle and holder.memory_bytes) if chosen is None else chosen


def budget_bytes(allotments: Sequence[Allotment], physical_bytes: int | None) -> int | None:
    """Return what the on-demand models of a node may hold together; None where nothing bounds it.

    Every stack of the node says what its other services take; the node's reserve is in each of them.
    """
    if not allotments:
        return None
    declared = [each.memory_gib for each in allotments if each.memory_gib is not None]
    whole = min(declared) * GIB if declared else physical_bytes
    aside = sum(each.set_aside_gib - each.reserve_gib for each in allotments)
    aside += max(each.reserve_gib for each in allotments)
    return None if whole is None else max(0, int(whole - aside * GIB))


def shortage(service: str, need_bytes: int, budget: int, holders: Sequence[Holder]) -> str:
    """Say for clients and operators why a model cannot be loaded now, and who holds the memory."""
    if need_bytes > budget:
        return (
            f"'{service}' needs {_gib(need_bytes)} GiB; this node leaves {_gib(budget)} GiB to on-demand models. "
            "Choose a smaller model or another node."
        )
    held = ", ".join(
        f"'{holder.service}' {_gib(holder.memory_bytes)} GiB" + ("" if holder.is_idle else " (in use)")
        for holder in sorted(holders, key=lambda one: -one.memory_bytes)
        if holder.memory_bytes
    )
    return (
        f"'{service}' needs {_gib(need_bytes)} GiB and cannot be loaded now: of the {_gib(budget)} GiB for on-demand "
        f"models on this node {held or 'nothing'} is held."
    )


def expected_s(last_s: float | None, size_bytes: int) -> float:
    """Return how long a load will take: as long as the last one of this model, else by its size."""
    return last_s if last_s is not None else START_S + size_bytes / BYTES_PER_S


def longest_s(size_bytes: int) -> float:
    """Return after how long a load counts as stuck; by the size alone, since the last one may have read from memory."""
    return SLOWEST_START_S + size_bytes / SLOWEST_BYTES_PER_S


def left_s(expected: float, elapsed_s: float, progress: float | None) -> float:
    """Return the rest of a load; one that takes longer than expected goes by what it has done so far."""
    rest = expected - elapsed_s
    if rest < 1.0 and progress is not None and 0.05 <= progress < 1.0:
        rest = elapsed_s / progress - elapsed_s
    return max(1.0, rest)


def _gib(size: int) -> str:
    amount = size / GIB
    return f"{amount:.1f}" if amount >= 0.1 or not size else f"{amount:.2g}"
