"""Pure: what was seen of the cluster. A node that could not be asked is unknown, which is not the same as empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.admin import ConfigReport
from schemas.base import ModelName, NodeName, SlotId, StackName, UnitId
from schemas.routes import Routes
from schemas.unit import GatewaySpec, WorkerSpec, slot_of

Phase = Literal["starting", "running", "exited", "unreadable"]


@dataclass(frozen=True, slots=True)
class ObservedUnit:
    """One unit of the stack, alive or the remains of one."""

    id: UnitId
    node: NodeName
    alive: bool
    """Its lock is held."""
    ready: bool = False
    """It has answered with a real token since it was loaded."""
    phase: Phase = "running"
    spec: WorkerSpec | GatewaySpec | None = None
    """What it was started as; None where its record cannot be read."""
    port: int | None = None
    owner: str | None = None
    """The configuration directory that it was started from."""
    pid: int | None = None
    started_at: float | None = None
    """Seconds since the epoch."""
    exit: str | None = None
    """How it ended, in words, such as `exit code 1` or `killed by SIGKILL`."""
    log_tail: tuple[str, ...] = ()
    """Its last lines, for a unit that ended."""
    load_s: float | None = None
    """How long it took until its first token."""

    @property
    def slot(self) -> SlotId:
        """Return the place that it fills."""
        return slot_of(self.id)


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Who listens on a port."""

    pid: int | None
    """None where the system does not tell."""
    command: str
    unit: tuple[StackName, UnitId] | None = None
    """The unit of ours that it is, of whichever stack."""


@dataclass(frozen=True, slots=True)
class Reachable:
    """A node that answered."""

    units: Mapping[UnitId, ObservedUnit] = field(default_factory=dict)
    """The units of this stack."""
    ports: Mapping[int, PortHolder] = field(default_factory=dict)
    """The ports that are taken, of those that the stack may need."""
    models: frozenset[ModelName] = frozenset()
    """The stack's models that are in the store."""
    memory_gib: float | None = None
    memory_available_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A node that did not answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything seen for one stack."""

    nodes: Mapping[NodeName, Reachable | Unreachable] = field(default_factory=dict)
    routes: Routes | None = None
    """The `routes.json` that is published now."""
    gateway: ConfigReport | None = None
    """What the running gateway says; None where none answers."""

    def units(self) -> list[ObservedUnit]:
        """Return all units of the stack on the nodes that answered, by node and id."""
        reachable = [(name, node) for name, node in sorted(self.nodes.items()) if isinstance(node, Reachable)]
        return [node.units[unit] for _, node in reachable for unit in sorted(node.units)]
