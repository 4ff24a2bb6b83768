"""Pure: what the ranks of a group say to each other: JSON documents, each with its `kind`."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert, Step
from schemas.base import Frozen
from schemas.messages import Phase, WorkerMemory, WorkerVersions
from schemas.sharding import Backend, Strategy

PROTOCOL = 4
"""Raised with every change of these types."""


RIGHT = "right"
"""The digest of a probe whose sums were those of what the ranks had sent."""


class Identity(Frozen):
    """What must be the same on every rank for all of them to compute the same."""

    versions: WorkerVersions
    """Python's may differ: it computes nothing. Our own is known by `code`."""
    code: str
    """Digest of our own sources."""
    files: dict[str, str]
    """Digest of every file of the model, by its name."""


class Shape(Frozen):
    """How the model is spread; the same on every rank."""

    size: int
    backend: Backend
    strategy: Strategy
    split: tuple[int, ...] | None
    max_batch: int
    max_context: int | None
    prompt_cache_bytes: int | None
    """The bound on every rank's prompt cache; 0 keeps nothing, none goes by the model."""


class Hello(Frozen):
    """The first message of a rank."""

    kind: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    rank: int
    launch: str
    shape: Shape
    identity: Identity


class Welcome(Frozen):
    """All ranks are there and alike: join the collectives now."""

    kind: Literal["welcome"] = "welcome"


class Loaded(Frozen):
    """A rank has its part of the model in memory."""

    kind: Literal["loaded"] = "loaded"


class WireSampling(Frozen):
    """`Sampling`, its seed drawn."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: tuple[tuple[int, float], ...]


class WireInsert(Frozen):
    """One request that enters the batch."""

    id: int
    tokens: list[int]
    max_tokens: int
    sampling: WireSampling
    logprobs: int | None
    shares: int | None
    constraint: str | None


class Round(Frozen):
    """What every rank does now: take out, take in, compute one step."""

    kind: Literal["round"] = "round"
    number: int
    """Counts from 1, without gaps."""
    removes: list[int]
    inserts: list[WireInsert]
    prefill_tokens: int


class Probe(Frozen):
    """A round in which every rank measures its links instead of computing a step; only while there is no request."""

    kind: Literal["probe"] = "probe"
    number: int
    """Counts with the other rounds."""
    numbers: int
    """How many numbers each rank adds."""
    sums: int
    """How often."""


class Done(Frozen):
    """A rank has computed a round."""

    kind: Literal["done"] = "done"
    number: int
    digest: str
    """Of the tokens that the round gave; see `digest`. Of a probe: RIGHT where the sums were."""
    seconds: float | None = None
    """Of a probe: what one sum took."""


class Heartbeat(Frozen):
    """A rank lives. Sent every few seconds, also in the middle of a round."""

    kind: Literal["heartbeat"] = "heartbeat"
    phase: Phase
    progress: float | None
    round: int
    """The last one that was begun."""
    memory: WorkerMemory


class Failed(Frozen):
    """A rank cannot go on."""

    kind: Literal["failed"] = "failed"
    code: int
    """One of `schemas.exits`."""
    message: str


class Leaving(Frozen):
    """A rank was asked to stop by somebody else than rank 0."""

    kind: Literal["leaving"] = "leaving"


class Shutdown(Frozen):
    """The group ends: every rank exits with `code`."""

    kind: Literal["shutdown"] = "shutdown"
    code: int
    message: str


Message = Hello | Welcome | Loaded | Round | Probe | Done | Heartbeat | Failed | Leaving | Shutdown

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """Return a message as JSON."""
    return message.model_dump_json().encode()


def decode(text: bytes) -> Message:
    """Parse a message; raises `pydantic.ValidationError`."""
    return _MESSAGE.validate_json(text)


def round_of(number: int, commands: Commands) -> Round:
    """Build the message that makes the other ranks do `commands`."""
    inserts = [
        WireInsert(
            id=insert.id,
            tokens=insert.tokens,
            max_tokens=insert.max_tokens,
            sampling=WireSampling(
                temperature=insert.sampling.temperature,
                top_p=insert.sampling.top_p,
                top_k=insert.sampling.top_k,
                min_p=insert.sampling.min_p,
                seed=insert.sampling.seed,
                repetition_penalty=insert.sampling.repetition_penalty,
                frequency_penalty=insert.sampling.frequency_penalty,
                presence_penalty=insert.sampling.presence_penalty,
                logit_bias=insert.sampling.logit_bias,
            ),
            logprobs=insert.logprobs,
            shares=insert.shares,
            constraint=insert.constraint,
        )
        for insert in commands.inserts
    ]
    removes, prefill_tokens = list(commands.removes), commands.prefill_tokens
    return Round(number=number, removes=removes, inserts=inserts, prefill_tokens=prefill_tokens)


def commands_of(message: Round) -> Commands:
    """Return what a round asks for; the inverse of `round_of`."""
    inserts = tuple(
        Insert(
            insert.id,
            insert.tokens,
            insert.max_tokens,
            Sampling(**insert.sampling.model_dump()),
            insert.logprobs,
            insert.shares,
            insert.constraint,
        )
        for insert in message.inserts
    )
    return Commands(inserts, tuple(message.removes), message.prefill_tokens)


def digest_of_sums(*, is_right: bool) -> str:
    """Return for a probe what `digest` is for a round: the same on every rank whose sums are right."""
    return RIGHT if is_right else "wrong"


def digest(step: Step) -> str:
    """Return a short digest of what a round gave, the same on every rank that computed the same."""
    state = blake2b(digest_size=8)
    for token in step.tokens:
        state.update(f"{token.id} {token.token} {token.finish};".encode())
    state.update(f"refused {sorted(step.refused)} entered {sorted(step.entered.items())}".encode())
    return state.hexdigest()


def differences(ours: Hello, theirs: Hello) -> list[str]:
    """Return in what another rank's hello differs from ours; nothing where the two can compute together."""
    found = []
    if theirs.protocol != ours.protocol:
        found.append(f"it speaks protocol {theirs.protocol}, rank {ours.rank} speaks {ours.protocol}")
    if theirs.launch != ours.launch:
        found.append("it belongs to another launch")
    found += _different(ours.rank, ours.shape.model_dump(), theirs.shape.model_dump())
    mine, its = ours.identity, theirs.identity
    # Our own version is known by its sources: a provisioned node has no distribution of it.
    libraries = {"mlx", "mlx_lm"}
    found += _different(
        ours.rank, mine.versions.model_dump(include=libraries), its.versions.model_dump(include=libraries)
    )
    if mine.code != its.code:
        found.append("its orchestrate has other sources")
    for name in sorted(mine.files.keys() | its.files.keys()):
        if name not in its.files:
            found.append(f"it has no {name}")
        elif name not in mine.files:
            found.append(f"it has a {name} that rank {ours.rank} has not")
        elif mine.files[name] != its.files[name]:
            found.append(f"its {name} has other contents")
    return found


def _different(rank: int, ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    return [
        f"its {name} is {theirs[name]}, that of rank {rank} is {value}"
        for name, value in ours.items()
        if theirs[name] != value
    ]
