"""I/O: products with quantised weights, by numpy where MLX computes them on a Linux CPU.

MLX 0.32's kernel there computes one row after the other: 256 rows take 256 times as long as one. Here the weights are
unpacked a block at a time, while they are in the processor's cache, and OpenBLAS multiplies the block with all rows.
1,536 x 576 weights of 4 bits in milliseconds of one busy x86 core, MLX against this: 1 row 0.9 and 1.0; 2 rows 1.9 and
1.0; 8 rows 8.7 and 1.2; 32 rows 36 and 1.8; 256 rows 305 and 9.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.nn.layers.distributed import QuantizedAllToShardedLinear, QuantizedShardedToAllLinear

from runtime.worker import blas
from runtime.worker.prefill import TAIL

LEAST_ROWS = 2
"""With fewer rows MLX's kernel is as quick, and it computes while Python does something else."""
MOST_READ = TAIL
"""Tokens of one sequence whose logits anybody reads: the last of a prompt. A draft's guesses are fewer."""
BLOCK = 1 << 16
"""Weights unpacked at once: 256 KiB of them stay in a core's own cache."""

_IS_UNREAD = ContextVar("_IS_UNREAD", default=False)
"""Nobody reads the logits of what is computed now."""

Floats = npt.NDArray[np.float32]

_BYTES = np.arange(256)
_PAIRS = (np.stack([_BYTES & 15, _BYTES >> 4], axis=1) - 8).astype(np.float32).view(np.float64).reshape(256)
"""The two 4-bit numbers in a byte, lower bits first as MLX packs them, less 8: one look-up, of 64 bits, gives both."""


@contextmanager
def unread() -> Iterator[None]:
    """Say that nobody reads the logits of what the block computes."""
    token = _IS_UNREAD.set(True)
    try:
        yield
    finally:
        _IS_UNREAD.reset(token)


def use_numpy(module: Any) -> None:
    """Let the quantised layers of a model compute by numpy where that is quicker; elsewhere it stays as it is."""
    if sys.platform != "linux" or mx.default_device().type != mx.DeviceType.cpu:
        return
    modules = module.named_modules()
    words = {layer.weight.shape[0] for _, layer in modules if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding)}
    for path, layer in modules:
        own = _Head if _is_head(path, layer, words) else _LAYERS.get(type(layer))
        if own is not None and layer.mode == "affine" and layer.bits in {4, 8}:
            # Its weights stay where they are; only what is done with them changes.
            layer.__class__ = own
    blas.leave_cores_free()


def product(layer: Any, x: mx.array) -> mx.array:
    """Return `x` times a layer's weights, without its bias: the last dimension becomes the layer's width."""
    width = x.shape[-1]
    if x.size < LEAST_ROWS * width:
        out: mx.array = mx.quantized_matmul(
            x, layer.weight, layer.scales, layer.biases, transpose=True, group_size=layer.group_size, bits=layer.bits
        )
        return out
    # Views of MLX's memory, computed up to here; only the product is copied.
    rows = np.asarray(x.astype(mx.float32)).reshape(-1, width)
    scales, offsets = (np.asarray(each.astype(mx.float32)) for each in (layer.scales, layer.biases))
    found = _product(rows, np.asarray(layer.weight).view(np.uint8), scales, offsets)
    # As MLX chooses it: it must not depend on the number of rows.
    return mx.array(found.reshape(*x.shape[:-1], -1)).astype(mx.result_type(x, layer.scales, layer.biases))


def _product(rows: Floats, packed: npt.NDArray[np.uint8], scales: Floats, offsets: Floats) -> Floats:
    """Multiply rows with weights of 4 or 8 bits, packed like `scales` a row for each place of the result.

    A weight is its number times the scale, plus the offset, of its group. All numbers of a group share the offset,
    which is multiplied with the sum of what they are multiplied with. Numbers count from the middle of their range:
    with two parts that are small their sum is as exact as MLX's.
    """
    count, width = rows.shape
    height, groups = scales.shape
    is_wide = packed.shape[1] == width
    step = max(1, BLOCK // width)
    block = np.empty((min(step, height), width), np.float32)
    found = np.empty((count, height), np.float32)
    for begin in range(0, height, step):
        part = slice(begin, min(begin + step, height))
        weights = block[: part.stop - begin]
        if is_wide:
            np.copyto(weights, (packed[part] ^ 128).view(np.int8))
        else:
            # `clip` spares a copy: no byte is outside of the table.
            np.take(_PAIRS, packed[part], out=weights.view(np.float64), mode="clip")
        grouped = weights.reshape(-1, groups, width // groups)
        np.multiply(grouped, scales[part, :, None], out=grouped)
        np.matmul(rows, weights.T, out=found[:, part])
    sums = rows.reshape(count, groups, -1).sum(axis=-1)
    found += sums @ (offsets + (128 if is_wide else 8) * scales).T
    return found


def _with_bias(layer: Any, found: mx.array) -> mx.array:
    return found + layer.bias if "bias" in layer else found


def _is_head(path: str, layer: Any, words: Collection[int]) -> bool:
    """Tell whether a layer gives logits: its places are the vocabulary's, and it is no part of a numbered layer.

    Models call it `lm_head`, `output` (InternLM 2, Llama 4) or `embed_out` (GPT-NeoX). `words` are the sizes of the
    model's vocabularies.
    """
    is_inner = any(name.isdigit() for name in path.split("."))
    return type(layer) is nn.QuantizedLinear and not is_inner and layer.scales.shape[0] in words


def _is_prompt(x: mx.array) -> bool:
    """Tell whether a head gets tokens that nobody reads the logits of, or most of them.

    MLX computes what is read, and nothing of a prompt is but its end; numpy would compute all at once.
    """
    return _IS_UNREAD.get() or (x.ndim > 2 and x.shape[-2] > MOST_READ)


class _Linear(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        return _with_bias(self, product(self, x))


class _Head(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        own: Any = super()
        found: mx.array = own.__call__(x) if _is_prompt(x) else _with_bias(self, product(self, x))
        return found


class _Embedding(nn.QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        own: Any = super()
        found: mx.array = own.as_linear(x) if _is_prompt(x) else product(self, x)
        return found


class _AllToSharded(QuantizedAllToShardedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        return _with_bias(self, product(self, x))


class _ShardedToAll(QuantizedShardedToAllLinear):
    def __call__(self, x: mx.array) -> mx.array:
        return _with_bias(self, mx.distributed.all_sum(product(self, x), group=self.group))


_LAYERS: dict[type, type] = {
    nn.QuantizedLinear: _Linear,
    nn.QuantizedEmbedding: _Embedding,
    QuantizedAllToShardedLinear: _AllToSharded,
    QuantizedShardedToAllLinear: _ShardedToAll,
}
