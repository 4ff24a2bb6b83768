"""Pure: what one command wants, what it has planned, and what is kept of it: values that `controller` works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.cluster import Cluster
from orchestrator.execute import Outcome
from orchestrator.expand import Desired
from orchestrator.journal import Generation
from orchestrator.observed import Observed, Reachable
from orchestrator.plan import Plan, Stop
from orchestrator.revisions import GitStamp
from orchestrator.snapshots import Files, files_digest
from schemas.base import NodeName
from schemas.node import Node
from schemas.problems import Problem


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should run, and the files that say so."""

    desired: Desired
    git: GitStamp
    files: Files = field(default_factory=dict)
    """The files that were composed; none for `down`."""
    back_to: int | None = None
    """The generation whose files these are, for a rollback."""
    is_current: bool = True
    """False: the files are bad now, and this is what they said before."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with everything that it was made from."""

    plan: Plan
    desired: Desired
    observed: Observed
    cluster: Cluster
    git: GitStamp
    generation: int
    """The number that applying it gets."""
    files: Files = field(default_factory=dict)
    back_to: int | None = None

    def heading(self) -> str:
        """Return the first line of the plan's text."""
        old = f", the files of generation {self.back_to}" if self.back_to is not None else ""
        name = f"Stack {self.plan.stack} at {self.git}{old}"
        return name if self.plan.is_empty else f"{name} -> generation {self.generation}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A stack as it runs, whether or not its files are good."""

    observed: Observed
    plan: Plan | None
    """What apply would do; None while the files cannot be used."""
    problems: tuple[Problem, ...]
    """What is wrong with the files."""
    rolled_back: Generation | None = None
    """The rollback that is in force: what runs is not made from the files that are there now."""
    has_keys: bool = True
    """Whether there is a key, where the gateway asks for keys."""


def generation_of(
    planned: Planned,
    outcome: Outcome | None,
    command: str,
    who: str,
    began: float,
    ended: float,
    failures: tuple[str, ...],
) -> Generation:
    """Return what the journal keeps of an apply; `outcome` is None where it was interrupted.

    `began` and `ended` are in seconds since 1970.
    """
    return Generation(
        generation=planned.generation,
        revision=planned.git.revision,
        is_dirty=planned.git.is_dirty,
        commit=planned.git.commit,
        overrides=planned.desired.overrides,
        owner=planned.desired.owner,
        actor=who,
        at=began,
        changes=tuple(
            f"{change.verb} {change.target}: {change.cause}"
            for change in planned.plan.changes
            if change.kind not in ("defer", "hold", "failed")  # nothing was done about these
        ),
        outcome="interrupted" if outcome is None else outcome.words,
        command=command,
        files=files_digest(planned.files) if planned.files else None,
        names=tuple(sorted(planned.files)),
        is_rollback=planned.back_to is not None and planned.desired.files is not None,
        duration_s=round(ended - began, 3),
        failures=failures,
    )


def still_looked_at(planned: Planned, lost: frozenset[NodeName] = frozenset()) -> dict[NodeName, Node]:
    """Return the nodes to remember after everything was done.

    Those that left the files are not where they were cleaned, or do not answer and were said to be `lost` for good.
    """
    stopped = {action.unit for action in planned.plan.actions if isinstance(action, Stop)}

    def is_clean(name: NodeName) -> bool:
        seen = planned.observed.nodes.get(name)
        if not isinstance(seen, Reachable):
            return name in lost
        return not any(u.alive and u.id not in stopped for u in seen.units.values())

    left = planned.desired.left
    return {name: node for name, node in planned.desired.nodes.items() if name not in left or not is_clean(name)}
