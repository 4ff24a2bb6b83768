"""I/O: join the collectives of a group, and load one rank's part of the model."""

import contextlib
import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from runtime.worker.group import ring
from runtime.worker.model import LoadedModel, load
from runtime.worker.settings import Group
from schemas import exits
from schemas.sharding import sharding_problems, split_layers

logger = logging.getLogger(__name__)

CONNECT_S = 60
"""What the collectives get to connect. Ring gives up dialling after 31 s and accepts for ever."""


class ShardError(Exception):
    """The model cannot be spread like that."""


class JoinError(Exception):
    """The collectives did not connect, or not to each other."""


def join(group: Group) -> Any:
    """Connect the collectives; return mlx's group.

    `mx.distributed.init` keeps the interpreter's lock, so no thread of ours can watch it: SIGALRM ends a process whose
    collectives do not connect.

    Raises JoinError.
    """
    logger.info("joining %d ranks over %s as rank %d, within %d s", group.size, group.backend, group.rank, CONNECT_S)
    signal.setitimer(signal.ITIMER_REAL, CONNECT_S)
    try:
        joined: Any = mx.distributed.init(strict=True, backend=group.backend)
        if (joined.size(), joined.rank()) != (group.size, group.rank):
            raise JoinError(
                f"{group.backend} made rank {joined.rank()} of {joined.size()}, not {group.rank} of {group.size}"
            )
        if group.backend == "ring" and mx.default_device().type == mx.DeviceType.cpu:
            ring.let_sleep(Path(os.environ["MLX_HOSTFILE"]))
        _check_members(group, joined)
    except RuntimeError as error:
        raise JoinError(f"the collectives did not connect: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return joined


def _check_members(group: Group, joined: Any) -> None:
    """Find a rank of another launch: a ring's ports are open to everybody, also to a process that was left behind."""
    marks = [_mark(group.launch, rank) for rank in range(group.size)]
    seen = mx.distributed.all_gather(mx.array([marks[group.rank]], dtype=mx.uint32), group=joined).tolist()
    if seen != marks:
        raise JoinError("the collectives connected to a process of another launch")


def _mark(launch: str, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{launch} {rank}".encode()).digest()[:4], "little")


def check(group: Group, model_dir: Path) -> None:
    """Refuse, from `config.json` alone, what would fail obscurely or late; raises ShardError."""
    config = json.loads((model_dir / "config.json").read_bytes())
    problems = sharding_problems(config, group.strategy, group.backend, group.size, group.split)
    if problems:
        raise ShardError(f"{model_dir.name} cannot be spread over {group.size} ranks: {'; '.join(problems)}")


def load_part(
    group: Group, joined: Any, model_dir: Path, max_context: int | None, progress: Callable[[float], None]
) -> LoadedModel:
    """Load what this rank computes; raises ShardError and what mlx-lm raises."""
    return load(model_dir, max_context, progress, lambda module: _shard(group, joined, module))


def _shard(group: Group, joined: Any, module: Any) -> None:
    if group.strategy == "tensor":
        if not hasattr(module, "shard"):
            raise ShardError(f"mlx-lm has no tensor sharding for {type(module).__module__}")
        module.shard(joined)
        return
    inner: Any = getattr(module, "model", None)
    if not hasattr(inner, "pipeline"):
        raise ShardError(f"mlx-lm has no pipeline sharding for {type(module).__module__}")
    layers = len(inner.layers)
    counts = split_layers(group.split or (1,) * group.size, layers)
    logger.info("rank %d computes %d of %d layers", group.rank, counts[group.rank], layers)
    inner.pipeline(joined, split=list(counts))


def agreement(joined: Any) -> Callable[[mx.array], mx.array]:
    """Return what makes every rank go on with the tokens that rank 0 has chosen.

    Logits differ in their last bits between kinds of GPU, and with JACCL between ranks: each rank's own choice would
    sooner or later be another one. An all-gather depends on the tokens, so it stays in its place behind the model's own
    collectives on every rank.
    """

    def agree(tokens: mx.array) -> mx.array:
        return mx.distributed.all_gather(tokens, group=joined)[: tokens.shape[0]]

    return agree


def largest(joined: Any) -> Callable[[Sequence[int]], list[int]]:
    """Return what gives, for sizes in bytes on this rank, the largest on any rank, to the next KiB.

    It computes where the batch does: the step ahead may still be under way, and collectives of two streams would take
    each other's bytes off the link.
    """

    def agree(sizes: Sequence[int]) -> list[int]:
        with mx.stream(generation_stream):
            own = mx.array([-(-size // 1024) for size in sizes], dtype=mx.uint32)
            rows: Any = mx.distributed.all_gather(own[None], group=joined).tolist()
        return [1024 * max(column) for column in zip(*rows, strict=True)]

    return agree


def give_up(group: Group) -> None:
    """Let nothing more arrive by collectives of which one has failed; call it first of all."""
    if group.backend == "ring":
        # The caller handles an error already: a hostfile that is gone must not replace it.
        with contextlib.suppress(OSError, ValueError):
            ring.hang_up(Path(os.environ["MLX_HOSTFILE"]))


def exit_code_of(error: BaseException) -> int:
    """Return the code of `schemas.exits` that an error of this module or of a step stands for."""
    if isinstance(error, ShardError):
        return exits.CANNOT_SHARD
    if isinstance(error, JoinError):
        return exits.GROUP_NOT_FORMED
    # mlx 0.32's ring says `[ring] connection to a peer was lost`.
    return exits.RANK_LOST if "connection to a peer was lost" in str(error) else exits.RANK_FAILED
