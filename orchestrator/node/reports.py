"""Pure: what is asked of a node's shim and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

HowEnded = Literal["asked", "forgiven", "rebooted", "died"]
Phase = Literal["starting", "running", "exited", "lost", "unreadable"]


@dataclass(frozen=True, slots=True)
class UnitLaunch:
    """A program to run as a unit.

    `env` is added to the environment of the node's login and never shown, as it may carry secrets; `labels` come back
    in every report; the log takes at most twice `log_max_bytes`; `grace_s` is the time from TERM to KILL when the unit
    ends by itself and leaves processes behind; one that somebody has stopped (SIGSTOP) for `stopped_s` is killed, none
    waits for ever.
    """

    stack: str
    unit: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)
    log_max_bytes: int = 16 * 1024 * 1024
    grace_s: float = 10.0
    stopped_s: float | None = None

    def request(self) -> dict[str, Any]:
        """Return the shim's start request, without the state directory."""
        asked: dict[str, Any] = {
            "stack": self.stack,
            "unit": self.unit,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "labels": dict(self.labels),
            "log_max_bytes": self.log_max_bytes,
            "grace_s": self.grace_s,
        }
        return asked if self.stopped_s is None else {**asked, "stopped_s": self.stopped_s}


@dataclass(frozen=True, slots=True)
class EndReport:
    """How one run of a unit ended.

    `how`: `asked` by a stop, `rebooted` with its node, `died` on its own, or `forgiven`, which is a death that counts
    no more. `exited_at` is the last sign of life where nobody saw the end. Times are the node's, as in `UnitReport`.
    """

    started_at: float | None
    exited_at: float
    exit_code: int | None
    exit_signal: int | None
    how: HowEnded


@dataclass(frozen=True, slots=True)
class UnitReport:
    """One unit as its node sees it.

    `alive`: its lock is held. `phase` is `lost` when it died and nobody could record how, `unreadable` when its record
    is torn or not ours. `shim_alive` is False for a live unit whose supervisor was killed. Times are seconds since the
    epoch by the node's clock. `log_tail` has the last lines of its last run, and is empty for a live one.
    `ends` has its last few ends, oldest first, across all starts of this id.
    """

    stack: str
    unit: str
    alive: bool
    phase: Phase
    pid: int | None
    shim_alive: bool
    labels: Mapping[str, str]
    started_at: float | None
    exit_code: int | None
    exit_signal: int | None
    exited_at: float | None
    log_tail: str
    ends: tuple[EndReport, ...] = ()


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Who listens on a port: `pid` is None where the node hides it; `stack` and `unit` are set for our units."""

    pid: int | None
    pgid: int | None
    command: str
    stack: str | None
    unit: str | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node's machine: sizes are 0 where it does not say; `time` is its clock in seconds since the epoch."""

    os: str
    machine: str
    python: str
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    boot_id: str
    time: float
    cpu_count: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node reports at one moment; `ports` has the asked ports that are taken."""

    units: tuple[UnitReport, ...]
    ports: Mapping[int, PortHolder]
    node: NodeFacts


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What supervision stands on: `locks_work` is False for a state directory on a file system without locks."""

    node: NodeFacts
    executable: str
    locks_work: bool


def node_report(answer: Mapping[str, Any]) -> NodeReport:
    """Read the shim's list answer. Raises KeyError, TypeError or ValueError for one that does not fit."""
    return NodeReport(
        units=tuple(_unit_report(unit) for unit in answer["units"]),
        ports={int(port): PortHolder(**holder) for port, holder in answer["ports"].items() if holder is not None},
        node=NodeFacts(**answer["node"]),
    )


def _unit_report(unit: Mapping[str, Any]) -> UnitReport:
    ends = tuple(EndReport(**end) for end in unit.get("ends", ()))
    return UnitReport(**{"log_tail": "", **unit, "ends": ends})


def crashes_s(ends: Sequence[EndReport], now: float) -> tuple[float, ...]:
    """Return how long ago a unit died, latest first; `now` is its node's clock, which may have been set back."""
    return tuple(max(0.0, now - end.exited_at) for end in reversed(ends) if end.how == "died")


def doctor_report(answer: Mapping[str, Any]) -> DoctorReport:
    """Read the shim's doctor answer. Raises KeyError or TypeError for one that does not fit."""
    return DoctorReport(
        node=NodeFacts(**answer["node"]), executable=answer["executable"], locks_work=answer["locks_work"]
    )
