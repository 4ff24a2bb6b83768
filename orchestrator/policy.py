"""Pure: what a plan may change, and when something that keeps ending is started again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from schemas.base import NodeName

SILENT_LIMIT_S = 20.0
"""A living unit that has not answered for longer is replaced. A rank of a group gives its peers 15 s (worker)."""
FIRST_BACKOFF_S = 5.0
LONGEST_BACKOFF_S = 300.0
CRASH_LOOP_COUNT = 5
CRASH_LOOP_WINDOW_S = 600.0
"""So many ends within so long are a crash loop. With the backoff alone five ends take 75 s and five loads."""
CALM_S = 600.0
"""A unit that ran for longer before it ended is no repeat: its earlier ends do not count for the backoff."""


@dataclass(frozen=True, slots=True)
class PlanPolicy:
    """How much of the difference between desired and observed a plan deals with."""

    targets: tuple[str, ...] = ()
    """Slots, services, nodes, helpers or `gateway`: only these are changed, with what they need. Empty: everything."""
    assume_lost: frozenset[NodeName] = frozenset()
    """Nodes that do not answer and are taken to be gone for good: nothing runs there."""
    heals: bool = False
    """Nobody watches the plan: what keeps ending is started again later and later."""
    restart: tuple[str, ...] = ()
    """Slots, services or nodes whose units are stopped and started again as they are, whatever they ended of before."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether a unit may be started again, from how often it has ended."""

    crashes: int
    """How many ends in a row count."""
    is_loop: bool
    """It is not started any more."""
    delay_s: float
    """How long to wait until it may be started; 0 for now."""


def restart(crashes_s: Sequence[float]) -> Restart:
    """Judge a unit by how long ago it ended without being asked to: seconds, latest first."""
    if not crashes_s:
        return Restart(0, False, 0.0)
    in_a_row = 1
    for later, earlier in pairwise(crashes_s):
        if earlier - later > CALM_S:
            break
        in_a_row += 1
    is_loop = (
        len(crashes_s) >= CRASH_LOOP_COUNT and crashes_s[CRASH_LOOP_COUNT - 1] - crashes_s[0] <= CRASH_LOOP_WINDOW_S
    )
    backoff = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(in_a_row - 1, 10))
    return Restart(in_a_row, is_loop, max(0.0, backoff - crashes_s[0]))
