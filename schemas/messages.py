"""Pure: what a worker says about itself at `/ready` and `/status`."""

from __future__ import annotations

from typing import Literal

from schemas.base import Frozen
from schemas.model import ModelKind
from schemas.sharding import Backend, Strategy

Phase = Literal["starting", "joining", "loading", "warming", "ready", "recovering", "draining", "failed"]
"""`joining` while the ranks of a group connect; `warming` until the first token after a load; `recovering` after a
failed round until another token was produced."""


class WorkerReadiness(Frozen):
    """The answer of `/ready`: 200 where `is_ready`, else 503."""

    model: str
    """The name under which the worker serves its model."""
    is_ready: bool
    """True only after a real token was produced since the load."""
    phase: Phase
    progress: float | None
    """Share of the weights in memory while loading, 0 to 1; none in other phases."""
    load_s: float | None = None
    """Seconds from the start of the process to its first token; none before it."""


class WorkerMemory(Frozen):
    """Memory of one worker process, in bytes."""

    kind: ModelKind = "chat"
    dimensions: int | None = None
    """The length of an embedding model's vectors; none before the load and for other kinds."""
    active_bytes: int
    """In use by MLX arrays."""
    peak_bytes: int
    """The highest `active_bytes` since the start."""
    cache_bytes: int
    """Kept by MLX for reuse."""
    model_bytes: int
    """The weights' part of `active_bytes`."""
    kv_bytes: int
    """The key-value caches' part of `active_bytes`."""
    rss_bytes: int | None
    """Resident set of the process; none where the system does not tell it cheaply (macOS)."""
    rss_peak_bytes: int
    """The highest resident set since the start."""


class WorkerQueue(Frozen):
    """Places in use."""

    batch: int
    """Requests in the running batch."""
    batch_limit: int
    waiting: int
    """Requests admitted and not yet in the batch."""
    waiting_limit: int


class WorkerRequests(Frozen):
    """Requests since the start, by how they ended."""

    completed: int
    failed: int
    cancelled: int
    """The client left, or the drain ended."""
    refused: int
    """Answered 503: queue full, loading or draining."""


class WorkerTokens(Frozen):
    """Tokens since the start."""

    prompt: int
    generated: int
    per_s: float
    """Generated tokens a second over the last seconds in which there was work; 0 while idle."""
    last_age_s: float | None
    """Seconds since the last generated token; none before the first."""


class WorkerVersions(Frozen):
    """Versions that decide what the worker computes."""

    orchestrate: str
    python: str
    mlx: str
    mlx_lm: str


class WorkerRank(Frozen):
    """What rank 0 of a group knows of one rank."""

    rank: int
    phase: Phase
    progress: float | None
    """Share of its part of the weights in memory while loading, 0 to 1."""
    heartbeat_age_s: float | None
    """Seconds since it was last heard; none for rank 0 itself, and before its first word."""
    memory: WorkerMemory | None
    """None before its first heartbeat."""


class WorkerGroup(Frozen):
    """The sharded group that a worker leads."""

    size: int
    backend: Backend
    strategy: Strategy
    launch: str
    """The launch that its ranks belong to."""
    rounds: int
    """Steps computed by all ranks since the start."""
    ranks: tuple[WorkerRank, ...]
    """In the order of their numbers."""


class WorkerStatus(Frozen):
    """The answer of `/status`."""

    version: Literal[1] = 1
    model: str
    phase: Phase
    context_length: int | None
    """Tokens that prompt and answer may have together; none before the model is loaded."""
    uptime_s: float
    queue: WorkerQueue
    memory: WorkerMemory
    requests: WorkerRequests
    tokens: WorkerTokens
    versions: WorkerVersions
    group: WorkerGroup | None = None
    """None for a worker that has the whole model."""
