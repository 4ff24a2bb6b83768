"""Pure: what one process of ours is, as far as it matters for keeping or replacing it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Frozen, ModelKey, NodeKey, ServiceKey, SlotId, UnitId
from schemas.hashing import spec_hash

GATEWAY_SERVICE = "gateway"
"""The name under which the gateway's unit runs; no service may be called so."""


class ModelSpec(Frozen):
    """The part of a model that makes one unit different from another."""

    name: ModelKey
    source: str
    revision: str | None = None
    digest: str | None = None
    context: int | None = None


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

    @property
    def slot(self) -> SlotId:
        """Return the place that this unit fills: `<service>-<replica>.<rank>`."""
        return SlotId(f"{self.service}-{self.replica}.{self.rank}")


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


UnitSpec = Annotated[WorkerSpec | GatewaySpec, Field(discriminator="kind")]


def unit_id(spec: WorkerSpec | GatewaySpec) -> UnitId:
    """Return `<service>-<replica>.<rank>@<spec_hash>`, the name of a unit on its node."""
    return UnitId(f"{spec.slot}@{spec_hash(spec)}")


def slot_of(unit: UnitId) -> SlotId:
    """Return the place of a unit: its id up to the `@`."""
    return SlotId(unit.split("@", 1)[0])
