"""Pure: what one worker process was told to do."""

from dataclasses import dataclass, field

from schemas.model import ModelKind
from schemas.sharding import Backend, Strategy


@dataclass(frozen=True, slots=True)
class Group:
    """This process's place in a sharded group."""

    rank: int
    size: int
    backend: Backend
    strategy: Strategy
    split: tuple[int, ...] | None
    """Share of the layers per rank; none gives every rank the same."""
    control: str
    """`host:port` where rank 0 listens for the others."""
    launch: str
    """Unique per launch: ranks of another one are refused."""
    secret: str = field(repr=False)
    """This rank's secret CURVE key, in Z85."""
    peers: tuple[str, ...]
    """The public keys of all ranks, in their order."""


@dataclass(frozen=True, slots=True)
class OnDemand:
    """How a worker that loads its model when it is asked for shares its node's memory."""

    service: str
    """The name by which neighbours know it."""
    room: str
    """The directory that the on-demand workers of the node share."""
    budget: str | None = None
    """The file that says how much memory they have together; none leaves it unbounded."""
    memory_bytes: int | None = None
    """What the loaded model may need in all; none goes by the size of its weights."""
    idle_stop_s: float | None = None
    """Seconds without a request after which the model is dropped; none keeps it until another one needs the memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line and the environment, read once."""

    model_dir: str
    name: str
    """The only model name that clients may use."""
    host: str
    port: int
    token: str | None = field(repr=False)
    """Clients send it as a bearer token; none leaves the worker open and is allowed on loopback only."""
    kind: ModelKind = "chat"
    max_batch: int = 8
    """Requests computed together; of an embedding or reranking model texts."""
    max_waiting: int = 64
    """Further requests that wait; beyond them 503."""
    max_context: int | None = None
    """Lowers the model's own context length, in tokens."""
    prompt_cache_bytes: int | None = None
    """Bound on the key-value caches kept for prompts to come, those of running requests counted; 0 keeps none.

    None goes by the model, see `cache_size`.
    """
    draft_dir: str | None = None
    """The MLX model directory of a model that proposes tokens to a lone request."""
    draft_name: str | None = None
    """Under which it is told; none means by its directory's."""
    draft_tokens: int = 3
    """Proposed for one step."""
    drain_s: float = 10.0
    """Time that requests under way get after a TERM."""
    group: Group | None = None
    """None for a process that has the whole model."""
    on_demand: OnDemand | None = None
    """None for a model that is always in memory."""

    @property
    def places(self) -> int:
        """Return how many requests may be in the worker at once."""
        return self.max_batch + self.max_waiting
