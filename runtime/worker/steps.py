"""Pure: what one step of the computation takes and gives, on one process or on every rank of a group alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from runtime.worker.request import Sampling

WARM_UP_ID = 0
"""The id of the request that produces the first token; those of clients count from 1. Nothing is kept of it."""


@dataclass(frozen=True, slots=True)
class Insert:
    """One request that enters the batch. `id` is unique in the life of the worker, but for WARM_UP_ID."""

    id: int
    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    logprobs: int | None = None
    """How many of the most probable tokens to tell with each one; none tells nothing."""
    shares: int | None = None
    """The first of the requests that share this prompt, itself included: one computes it for all."""
    constraint: str | None = None
    """A serialised llguidance grammar that the answer obeys; every rank compiles it itself."""


@dataclass(frozen=True, slots=True)
class Commands:
    """What to do before the next step: take out first, then take in."""

    inserts: Sequence[Insert] = ()
    removes: Sequence[int] = ()
    """Ids; one that is not there is no mistake."""
    prefill_tokens: int = 32
    """Of each prompt at most so many tokens are computed in the step."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities in the model's own distribution, before anything the request asks for."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """The most probable tokens, the most probable first."""


@dataclass(frozen=True, slots=True)
class Token:
    """What one step gave one request; with a finish it has left the batch."""

    id: int
    token: int
    finish: str | None
    """`stop` for an end token, `length` for the last one that was allowed."""
    error: Exception | None = None
    """Why the token could not be chosen; any token at all stands in its place."""
    logprobs: TokenLogprobs | None = None
    """None where the request asked for none."""


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one step."""

    tokens: list[Token]
    refused: list[int]
    """Ids of requests that could not enter."""
    entered: dict[int, int] = field(default_factory=dict)
    """Tokens of the prompt that need not be computed any more, keyed by the ids of the requests that entered."""
    has_computed: bool = True
    """Otherwise it only took requests in, and its time tells nothing."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the computation holds in this process, and what it has counted."""

    kv_bytes: int = 0
    """The caches of the running requests."""
    kept_bytes: int = 0
    """The prompt cache."""
    kept_limit: int = 0
    """Bytes of it and of the running requests' caches together; 0 keeps nothing."""
    kept: int = 0
    """Its entries."""
    lookups: int = 0
    hits: int = 0
    cached_tokens: int = 0
    draft_bytes: int = 0
    """The weights of the draft model."""
    drafted: int = 0
    """Tokens that the draft model has proposed."""
    accepted: int = 0
    """Those that the model chose as well."""
    draft_failure: str | None = None
    """Why the draft model is not used any more."""


class GroupEndedError(Exception):
    """The group ends, and who ends it tells why; the generation thread has nothing more to do."""


class Steps(Protocol):
    """What `Batch` needs of the computation, in this process alone or in a whole group."""

    def step(self, commands: Commands) -> Step:
        """Apply the commands and compute one step; raises GroupEndedError and what the model raises."""

    def recover(self) -> None:
        """Forget all requests after a step that raised; raises GroupEndedError where there is no going on."""

    @property
    def gauges(self) -> Gauges:
        """What is held in this process, and what was counted."""

    def close(self) -> None:
        """Give the resources back."""


@runtime_checkable
class Resting(Protocol):
    """Steps that have something to do while there is no request."""

    def rest(self) -> float:
        """Do what is due; return after how many seconds to ask again. Raises GroupEndedError."""
