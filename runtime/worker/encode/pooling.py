"""I/O: hidden states become vectors, on MLX and in 32-bit numbers whatever the model computes in."""

from collections.abc import Sequence

import mlx.core as mx

from runtime.worker.encode.modules import PoolingMode

_LEAST_NORM = 1e-12
"""What torch divides a vector by that is shorter than this."""


def pool(hidden: mx.array, lengths: mx.array, modes: Sequence[PoolingMode]) -> mx.array:
    """Turn rows x tokens x width into one vector for each row; those of several modes are joined.

    Padding stands behind a row's `lengths` tokens and counts for nothing.
    """
    hidden = hidden.astype(mx.float32)
    return mx.concatenate([_pool(hidden, lengths, mode) for mode in modes], axis=-1)


def normalise(vectors: mx.array) -> mx.array:
    """Scale every vector to length one."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), _LEAST_NORM)


def _pool(hidden: mx.array, lengths: mx.array, mode: PoolingMode) -> mx.array:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last":
        return hidden[mx.arange(hidden.shape[0]), lengths - 1]
    places = mx.arange(hidden.shape[1])
    is_token = (places[None] < lengths[:, None])[..., None]
    if mode == "max":
        return mx.where(is_token, hidden, -mx.inf).max(axis=1)
    if mode == "weighted_mean":
        weights = is_token * (places + 1)[None, :, None]
        return (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    total = mx.where(is_token, hidden, 0).sum(axis=1)
    count = lengths[:, None].astype(mx.float32)
    return total / (mx.sqrt(count) if mode == "mean_sqrt_len" else count)
