"""Pure: what one process of ours is, as far as it matters for keeping or replacing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Frozen, ModelKey, NodeKey, ServiceKey, SlotId, UnitId
from schemas.hashing import spec_hash
from schemas.model import ModelKind

GATEWAY_SERVICE = "gateway"
"""The name under which the gateway's unit runs; no service may be called so."""
WATCHER_SERVICE = "watcher"
"""The name under which the supervised watcher runs; no service may be called so."""


class ModelSpec(Frozen):
    """The part of a model that makes one unit different from another."""

    name: ModelKey
    source: str
    revision: str | None = None
    digest: str | None = None
    context: int | None = None
    kind: ModelKind = "chat"


class GroupSpec(Frozen):
    """How the ranks of one sharded group share a model. Part of every rank's specification."""

    backend: Literal["ring", "jaccl", "nccl"]
    strategy: Literal["tensor", "pipeline"]
    split: tuple[int, ...] | None = None
    """Share of the layers per rank, for `pipeline`."""
    nodes: tuple[NodeKey, ...]
    """The node of each rank, in rank order; one may stand several times."""

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return len(self.nodes)


class WorkerSpec(Frozen):
    """One worker process: everything that only a new process can change."""

    kind: Literal["worker"] = "worker"
    node: NodeKey
    service: ServiceKey
    replica: int
    rank: int
    model: ModelSpec
    port: int | None = None
    """The port that the stack asks for; None lets the plan take a free one of the node's range."""
    max_batch: int
    max_waiting: int
    prompt_cache_gib: float | None = None
    """What it may keep for prompts to come, in GiB; None leaves it to the worker."""
    draft: ModelSpec | None = None
    """The model that proposes tokens to it."""
    draft_tokens: int = 3
    """Proposed for one step."""
    on_demand: bool = False
    """Whether it holds its model only while it is used."""
    idle_stop_s: float | None = None
    """Seconds without a request after which it drops its model; None keeps it until another one needs the memory."""
    group: GroupSpec | None = None
    """The sharded group that it is a rank of; None for a worker that serves alone."""
    host: str | None = None
    """The address at which the gateway calls it from another machine; None where both are on one, on loopback."""

    @property
    def slot(self) -> SlotId:
        """Return the place that this unit fills: `<service>-<replica>.<rank>`."""
        return SlotId(f"{self.service}-{self.replica}.{self.rank}")


class EngineSpec(Frozen):
    """One process of somebody else's inference server that we start and stop."""

    kind: Literal["engine"] = "engine"
    node: NodeKey
    service: ServiceKey
    replica: int
    engine: Literal["mlx-lm-server", "llama-server", "vllm", "command"]
    model: ModelSpec
    port: int | None = None
    """The port that the stack asks for; None lets the plan take a free one of the node's range."""
    max_batch: int
    args: Mapping[str, str | int | float | bool]
    """Its own arguments, by option name."""
    host: str | None = None
    """The address at which the gateway calls it from another machine; None where both are on one, on loopback."""

    @property
    def slot(self) -> SlotId:
        """Return the place that this unit fills: `<service>-<replica>.0`."""
        return SlotId(f"{self.service}-{self.replica}.0")


class GatewaySpec(Frozen):
    """The gateway process."""

    kind: Literal["gateway"] = "gateway"
    node: NodeKey
    bind: str
    port: int

    @property
    def slot(self) -> SlotId:
        """Return the place that this unit fills; there is one."""
        return SlotId(f"{GATEWAY_SERVICE}-0.0")


class WatcherSpec(Frozen):
    """The supervised process that keeps a stack as its files say, for stacks with `heal: true`."""

    kind: Literal["watcher"] = "watcher"
    node: NodeKey

    @property
    def slot(self) -> SlotId:
        """Return the place that this unit fills; there is one."""
        return SlotId(f"{WATCHER_SERVICE}-0.0")


ModelUnitSpec = WorkerSpec | EngineSpec
"""A unit that serves a model."""
AnyUnitSpec = WorkerSpec | EngineSpec | GatewaySpec | WatcherSpec
UnitSpec = Annotated[AnyUnitSpec, Field(discriminator="kind")]


def models_of(spec: AnyUnitSpec | None) -> tuple[ModelSpec, ...]:
    """Return the models that a unit serves or is helped by: its own, and its draft model behind it."""
    match spec:
        case WorkerSpec(draft=ModelSpec() as draft):
            return (spec.model, draft)
        case WorkerSpec() | EngineSpec():
            return (spec.model,)
        case _:
            return ()


def is_group(spec: AnyUnitSpec | None) -> bool:
    """Tell whether a unit is a rank of a sharded group."""
    return isinstance(spec, WorkerSpec) and spec.group is not None


def is_on_demand(spec: AnyUnitSpec | None) -> bool:
    """Tell whether a unit holds its model only while it is used."""
    return isinstance(spec, WorkerSpec) and spec.on_demand


def unit_id(spec: AnyUnitSpec) -> UnitId:
    """Return `<service>-<replica>.<rank>@<spec_hash>`, the name of a unit on its node."""
    return UnitId(f"{spec.slot}@{spec_hash(spec)}")


def slot_of(unit: UnitId) -> SlotId:
    """Return the place of a unit: its id up to the `@`."""
    return SlotId(unit.split("@", 1)[0])
