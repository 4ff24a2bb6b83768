"""Pure: what a worker says about itself at `/ready` and `/status`."""

from __future__ import annotations

from typing import Literal

from schemas.base import Reported
from schemas.model import ModelKind
from schemas.on_demand import OnDemandReport
from schemas.sharding import Backend, Strategy
from schemas.verdict import Verdict

Phase = Literal[
    "starting", "cold", "joining", "loading", "warming", "ready", "recovering", "unloading", "draining", "failed"
]
"""`cold` while a worker that loads on demand holds no model; `joining` while the ranks of a group connect; `warming`
until the first token after a load; `recovering` after a failed round until another token was produced; `unloading`
while a model's memory is given back."""


class WorkerReadiness(Reported):
    """The answer of `/ready`: 200 where `takes_requests`, else 503."""

    model: str
    """The name under which the worker serves its model."""
    is_ready: bool
    """True only after a real token was produced since the load."""
    phase: Phase
    progress: float | None
    """Share of the weights in memory while loading, 0 to 1; none in other phases."""
    load_s: float | None = None
    """Seconds from the start of the process to its first token; none before it."""
    kind: ModelKind = "chat"
    dimensions: int | None = None
    """The length of an embedding model's vectors; none before the load and for other kinds."""
    on_demand: OnDemandReport | None = None
    """None for a worker that always holds its model."""
    canary: Verdict | None = None
    """What was found of a sharded group before anybody is sent to it; none before it was judged, and for no group."""

    @property
    def takes_requests(self) -> bool:
        """Tell whether requests may be sent: one to a model that is not in memory loads it."""
        return self.is_ready or (self.on_demand is not None and self.phase not in {"starting", "draining", "failed"})


class WorkerMemory(Reported):
    """Memory of one worker process, in bytes."""

    active_bytes: int
    """In use by MLX arrays."""
    peak_bytes: int
    """The highest `active_bytes` since the start."""
    cache_bytes: int
    """Kept by MLX for reuse."""
    model_bytes: int
    """The weights' part of `active_bytes`."""
    kv_bytes: int
    """The part of `active_bytes` that the running requests' key-value caches take."""
    prompt_cache_bytes: int = 0
    """The part of `active_bytes` that is kept for prompts to come."""
    rss_bytes: int | None
    """Resident set of the process; none where the system does not tell it cheaply (macOS)."""
    rss_peak_bytes: int
    """The highest resident set since the start."""


class WorkerQueue(Reported):
    """Places in use."""

    batch: int
    """Requests in the running batch."""
    batch_limit: int
    waiting: int
    """Requests admitted and not yet in the batch."""
    waiting_limit: int


class WorkerRequests(Reported):
    """Requests since the start, by how they ended."""

    completed: int
    failed: int
    cancelled: int
    """The client left, or the drain ended."""
    refused: int
    """Answered 503: queue full, loading or draining."""


class WorkerTokens(Reported):
    """Tokens since the start."""

    prompt: int
    generated: int
    per_s: float
    """Generated tokens a second over the last seconds in which there was work; 0 while idle."""
    last_age_s: float | None
    """Seconds since the last generated token; none before the first."""


class WorkerPromptCache(Reported):
    """The key-value caches that a worker keeps, so that a conversation's next turn computes only what is new."""

    limit_bytes: int
    """Of what is kept and of the running requests' caches together."""
    bytes: int
    """Kept now; in a group, on the rank that keeps most."""
    entries: int
    lookups: int
    """Prompts that were looked up since the start."""
    hits: int
    """Those of which a beginning was known."""
    cached_tokens: int
    """Tokens of prompts that needed not be computed."""


class WorkerSpeculation(Reported):
    """What a draft model proposes to the model."""

    draft: str
    """The draft model's name in the stack, or its directory's."""
    draft_tokens: int
    """Tokens proposed for one step."""
    proposed: int
    """Since the start."""
    accepted: int
    """Those that the model chose as well."""
    failure: str | None = None
    """Why the draft model is not used any more."""


class WorkerVersions(Reported):
    """Versions that decide what the worker computes."""

    orchestrate: str
    python: str
    mlx: str
    mlx_lm: str


class WorkerLink(Reported):
    """What one rank has measured of its links, in probes made while the group was idle."""

    latency_us: float
    """Microseconds that adding up 4 KiB of every rank takes: the median of one probe."""
    latency_age_s: float
    bandwidth_gbps: float | None
    """Gigabits a second at which 4 MiB of every rank are added up; none before the first such probe."""
    bandwidth_age_s: float | None


class WorkerRank(Reported):
    """What rank 0 of a group knows of one rank."""

    rank: int
    phase: Phase
    progress: float | None
    """Share of its part of the weights in memory while loading, 0 to 1."""
    heartbeat_age_s: float | None
    """Seconds since it was last heard; none for rank 0 itself, and before its first word."""
    memory: WorkerMemory | None
    """None before its first heartbeat."""
    round: int = 0
    """The last round that it had begun at that heartbeat."""
    link: WorkerLink | None = None
    """None before the first probe, which needs an idle group."""


class WorkerGroup(Reported):
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


ModelAbility = Literal[
    "completion", "tools", "vision", "audio", "thinking", "json_schema", "logprobs", "insert", "embedding", "rerank"
]
"""What a model may be able to do, in Ollama's words where it has one."""


class WorkerModel(Reported):
    """The row of `/v1/models`: OpenAI's keys, and what a client may want to know. None is left out."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Seconds since 1970."""
    owned_by: str = "orchestrate"
    context_length: int | None = None
    """Tokens that prompt and answer may have together, as requests are held to it; of an encoder those of one text."""
    max_model_len: int | None = None
    """The same in vLLM's words."""
    trained_context_length: int | None = None
    """What the model's own files say."""
    capabilities: tuple[ModelAbility, ...] = ()
    lacks: tuple[ModelAbility, ...] = ()
    """What it cannot do. Both are empty before the first load."""
    dimensions: int | None = None
    """The length of an embedding model's vectors."""
    architecture: str | None = None
    parameters: int | None = None
    quantisation: str | None = None
    """`4bit`, `mxfp4`, or the type of the weights: `bf16`."""
    format: str | None = None
    """`mlx`, or `safetensors` where another program wrote them."""
    size_bytes: int | None = None
    """Of the weights in their files."""
    loaded: bool
    """Whether the model is in memory."""
    memory_bytes: int | None = None
    """In use now, caches included; of a group that of its rank 0."""
    expires_at: float | None = None
    """When it is dropped from memory unless somebody asks, in seconds since 1970."""


class WorkerStatus(Reported):
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
    prompt_cache: WorkerPromptCache | None = None
    """None for a worker that keeps nothing, and before its model is loaded."""
    speculation: WorkerSpeculation | None = None
    """None for a worker without a draft model."""
    group: WorkerGroup | None = None
    """None for a worker that has the whole model."""
    on_demand: OnDemandReport | None = None
    """None for a worker that always holds its model."""
