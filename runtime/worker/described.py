"""Pure: what a worker says of its model at `/v1/models`: by its files alone, and once it was loaded."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.messages import ModelAbility, WorkerModel
from schemas.model import ModelKind

_ALL: tuple[ModelAbility, ...] = (
    "completion", "tools", "vision", "audio", "thinking", "json_schema", "logprobs", "insert", "embedding", "rerank"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileCard:
    """What a model's files say; None where they do not, or are not all here."""

    architecture: str | None = None
    trained_context_length: int | None = None
    context_length: int | None = None
    """The same where the settings do not lower it."""
    parameters: int | None = None
    quantisation: str | None = None
    """`4bit` of weights that MLX has packed, `mxfp4` and the like of such formats, else the weights' type: `bf16`."""
    format: str | None = None
    """`mlx`, or `safetensors` where somebody else wrote them."""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a model that was loaded."""

    context_length: int
    """Tokens, as requests are held to it."""
    can: frozenset[ModelAbility]
    """What it can do; it can do nothing else."""
    dimensions: int | None = None
    """The length of an embedding model's vectors."""


def chat_abilities(*, has_template: bool, has_thinking: bool) -> frozenset[ModelAbility]:
    """Return what a chat model can do here: any template is told of tools in words where it does not know them."""
    able: set[ModelAbility] = {"completion", "json_schema", "logprobs"}
    able |= {"tools"} if has_template else set()
    return frozenset(able | {"thinking"} if has_thinking else able)


def kind_abilities(kind: ModelKind) -> frozenset[ModelAbility]:
    """Return what an encoder can do here: every embedding model ranks as well, by the likeness of its vectors."""
    return frozenset({"embedding", "rerank"} if kind == "embedding" else {"rerank"})


def row_of(
    name: str,
    created: int,
    card: FileCard,
    described: Described | None,
    *,
    is_loaded: bool,
    memory_bytes: int,
    expires_at: float | None,
) -> WorkerModel:
    """Return the row of the models list; `described` is None before the first load."""
    return WorkerModel(
        id=name,
        created=created,
        context_length=described.context_length if described else card.context_length,
        max_model_len=described.context_length if described else card.context_length,
        trained_context_length=card.trained_context_length,
        capabilities=tuple(one for one in _ALL if described is not None and one in described.can),
        lacks=tuple(one for one in _ALL if described is not None and one not in described.can),
        dimensions=described.dimensions if described else None,
        architecture=card.architecture,
        parameters=card.parameters,
        quantisation=card.quantisation,
        format=card.format,
        size_bytes=card.size_bytes,
        loaded=is_loaded,
        memory_bytes=memory_bytes if is_loaded else None,
        expires_at=expires_at if is_loaded else None,
    )
