"""Pure: what was seen of the cluster. A node that could not be asked is unknown, which is not the same as empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.admin import ConfigReport
from schemas.base import HelperName, ModelName, NodeName, SlotId, StackName, UnitId
from schemas.messages import WorkerStatus
from schemas.on_demand import OnDemandReport
from schemas.routes import Routes
from schemas.unit import AnyUnitSpec, slot_of
from schemas.verdict import Verdict

ModelForm = Literal["mlx", "original"]
"""What of a model a node needs: an MLX directory, or the files as its source carries them, for other engines."""
Phase = Literal["starting", "running", "exited", "unreadable"]
SilenceKind = Literal["refused", "no answer", "no route", "unknown host", "tls", "key", "loading", "stranger", "broken"]
"""Why nothing could be learned of a helper: `key` it asks for another one, `stranger` something else answers there."""


@dataclass(frozen=True, slots=True)
class OnDemandSeen:
    """How it is with the model of a worker that loads it on demand."""

    phase: str
    """One of `schemas.messages.Phase`."""
    report: OnDemandReport


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
    spec: AnyUnitSpec | None = None
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
    demand: OnDemandSeen | None = None
    """Of one that loads its model on demand: how that is."""
    launch: str | None = None
    """Of a rank: which launch of its group it belongs to; ranks of different launches are no group."""
    link_port: int | None = None
    control_port: int | None = None
    silent_s: float = 0.0
    """How long a living unit that had answered before has not; 0 for one that answers or never did yet."""
    crashes_s: tuple[float, ...] = ()
    """How long ago this unit ended without being asked to, by its node's clock, in seconds, latest first."""
    generation: int | None = None
    """The apply that started it."""
    verdict: Verdict | None = None
    """What the canary of its group has shown, where it is rank 0 and was judged."""
    worker: WorkerStatus | None = None
    """What it says of itself at length, where it was asked for that."""

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
    models: frozenset[tuple[ModelName, ModelForm]] = frozenset()
    """The stack's models that are in its store, and in which form."""
    memory_gib: float | None = None
    memory_available_gib: float | None = None
    is_provisioned: bool = True
    """The runtime environment of our programs is there."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A node that did not answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's own files say of it, where they are known on this machine. None: they do not say."""

    architecture: str
    """`model_type` of its configuration."""
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    context: int | None = None
    weights_bytes: int | None = None
    dimensions: int | None = None
    """The length of the vectors that it makes of texts, whether it is used for that or not."""
    licence: str | None = None
    """As its card names it, such as `apache-2.0`."""


@dataclass(frozen=True, slots=True)
class HelperSeen:
    """A helper that answered."""

    engine: str
    """Which program it is, as far as it tells: `ollama`, `llama.cpp`, `vllm`, ..."""
    version: str | None = None
    present: frozenset[str] = frozenset()
    """The models that it has."""
    loaded: frozenset[str] = frozenset()
    """The models that it holds in memory, where it tells."""
    loaded_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory of loaded models, where it tells."""
    context: Mapping[str, int] = field(default_factory=dict)
    """The longest prompt plus answer by model, in tokens, where it tells."""
    takes_any_name: bool = False
    """It answers with its one model whatever a request calls it."""
    max_batch: int | None = None
    """Texts that it takes in one request, where it tells."""


@dataclass(frozen=True, slots=True)
class HelperSilent:
    """A helper that did not answer, or not as its kind does."""

    reason: str
    kind: SilenceKind = "broken"


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything seen for one stack."""

    nodes: Mapping[NodeName, Reachable | Unreachable] = field(default_factory=dict)
    routes: Routes | None = None
    """The `routes.json` that is published now."""
    gateway: ConfigReport | None = None
    """What the running gateway says; None where none answers."""
    helpers: Mapping[HelperName, HelperSeen | HelperSilent] = field(default_factory=dict)
    facts: Mapping[ModelName, ModelFacts] = field(default_factory=dict)
    """Of the stack's models whose files are known."""
    references: frozenset[tuple[ModelName, int]] = frozenset()
    """The models, each with the tokens of its long prompt, for which answers of one process are kept."""
    foreign_tokens: Mapping[tuple[ModelName, ModelName], str] = field(default_factory=dict)
    """The models and draft models that are known not to go together, each with a token that only the latter has."""

    def units(self) -> list[ObservedUnit]:
        """Return all units of the stack on the nodes that answered, by node and id."""
        reachable = [(name, node) for name, node in sorted(self.nodes.items()) if isinstance(node, Reachable)]
        return [node.units[unit] for _, node in reachable for unit in sorted(node.units)]
