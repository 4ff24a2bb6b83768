"""Pure: `routes.json`, what the orchestrator tells the gateway: where units run and which of them may be used."""

from __future__ import annotations

from typing import Literal

from schemas.base import Frozen, ModelKey, NodeKey, ServiceKey, StackKey, UnitId
from schemas.stack import Engine


class Instance(Frozen):
    """One running copy of a service."""

    unit: UnitId
    node: NodeKey
    service: ServiceKey
    model: ModelKey
    url: str
    """Base URL of its HTTP server, without `/v1`."""
    state: Literal["ready", "draining", "replacing"]
    """`draining`: no new requests, those in flight finish. `replacing`: it was stopped and its successor is on the way;
    requests that nobody else can answer are held until the file names that one."""
    engine: Engine = "mlx"
    """The program that answers at the URL."""
    upstream_model: str | None = None
    """The name that the engine knows the model by; `model` when absent."""


class Routes(Frozen):
    """The whole file. It is replaced atomically, never edited."""

    version: Literal[1] = 1
    stack: StackKey
    generation: int
    """Number of the apply that wrote it."""
    revision: str | None = None
    """Git revision of the files that were applied, with `+` behind it where they had uncommitted changes."""
    overrides: tuple[str, ...] = ()
    """The overrides of that apply; the gateway composes the files with them."""
    conf: str | None = None
    """The directory that the gateway composes instead of its own, absolute: the files of an earlier generation, after a
    rollback. Other files that the stack names, such as keys, stay in its own."""
    instances: tuple[Instance, ...] = ()
    drained: tuple[str, ...] = ()
    """Nodes, services, slots and units that somebody took out of the routes, until `drain --undo`."""

    def to_json(self) -> str:
        """Return the text of the file. What nobody drained is not in it, so that older readers take it."""
        return self.model_dump_json(indent=2, exclude=None if self.drained else {"drained"}) + "\n"
