"""I/O: the parts that encoder architectures share, on MLX."""

import sys
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from runtime.worker.encode.shares import share

LEAST_ROWS = 32
"""Rows of a product that are worth a thread of their own."""
SCORE_BYTES = 256 * 1024 * 1024
"""Room for one block of attention scores. MLX's CPU backend keeps all of them at once: 8,192 tokens and 12 heads would
need 3.2 GB, and long texts are what encoders are asked for."""

_Floats = npt.NDArray[np.float32]

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_P = 0.3275911
"""Abramowitz and Stegun 7.1.26: the error function to 1.5e-7, about what 32 bits can tell."""
_GELU_BLOCK = 1 << 15
"""Numbers treated at once: they and what is made of them stay in a core's own cache."""


def takes_numpy(x: mx.array) -> bool:
    """Tell whether numpy computes with these numbers quicker than MLX does."""
    return sys.platform == "linux" and mx.default_device().type == mx.DeviceType.cpu and x.dtype == mx.float32


def _gelu(x: mx.array) -> mx.array:
    """Return the exact GELU; MLX 0.32's error function on a Linux CPU takes ten times as long as this."""
    if not takes_numpy(x):
        out: mx.array = nn.gelu(x)
        return out
    flat = np.asarray(x).reshape(-1)
    found = np.empty_like(flat)
    share(lambda begin, end: write_gelu(flat[begin:end], found[begin:end]), flat.size, 2 * _GELU_BLOCK)
    return mx.array(found.reshape(x.shape))


def write_gelu(x: _Floats, out: _Floats) -> None:
    """Write the exact GELU of contiguous numbers into `out`, which may be where they are."""
    numbers, found = x.reshape(-1), out.reshape(-1)
    for begin in range(0, numbers.size, _GELU_BLOCK):
        _gelu_block(numbers[begin : begin + _GELU_BLOCK], found[begin : begin + _GELU_BLOCK])


def _gelu_block(x: _Floats, out: _Floats) -> None:
    """Write x / 2 * (1 + erf(x / sqrt 2)); with z = |x| / sqrt 2 that is max(x, 0) - |x| / 2 * (1 - erf z)."""
    size = np.abs(x)
    z = size * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(_ERF_P) * z)
    rest = np.full_like(t, _ERF[0])
    for factor in _ERF[1:]:
        rest *= t
        rest += np.float32(factor)
    rest *= t
    np.multiply(z, z, out=z)
    np.negative(z, out=z)
    rest *= np.exp(z, out=z)
    rest *= size
    rest *= np.float32(0.5)
    np.maximum(x, 0, out=out)
    out -= rest


ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": _gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": mx.tanh,
}
"""By transformers' names."""


class Linear(nn.Linear):
    """A linear layer, by numpy where MLX computes on a Linux CPU: its BLAS there is the slow reference one.

    3,200 x 384 times 384 x 1,536 in seconds of one x86 core: MLX 0.32 takes 1.8, numpy with OpenBLAS 0.09.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Return rows x tokens x the layer's width."""
        if not takes_numpy(x):
            out: mx.array = super().__call__(x)
            return out
        # Both are views of MLX's memory; only the product is copied.
        rows, weight = np.asarray(x).reshape(-1, x.shape[-1]), np.asarray(self.weight).T
        bias = np.asarray(self.bias) if "bias" in self else np.float32(0)
        product = np.empty((len(rows), weight.shape[1]), np.float32)

        def multiply(begin: int, end: int) -> None:
            np.matmul(rows[begin:end], weight, out=product[begin:end])
            product[begin:end] += bias

        share(multiply, len(rows), LEAST_ROWS)
        return mx.array(product.reshape(*x.shape[:-1], -1))


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """Return an activation; raises ValueError for a name that is not known."""
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json names the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def split_heads(values: mx.array, heads: int) -> mx.array:
    """Turn rows x tokens x width into rows x heads x tokens x width of a head."""
    rows, tokens, width = values.shape
    return values.reshape(rows, tokens, heads, width // heads).transpose(0, 2, 1, 3)


def join_heads(values: mx.array) -> mx.array:
    """Undo `split_heads`."""
    rows, heads, tokens, width = values.shape
    return values.transpose(0, 2, 1, 3).reshape(rows, tokens, heads * width)


def padding_mask(lengths: mx.array, tokens: int) -> mx.array:
    """Return rows x 1 x 1 x tokens, true where a key is a token of its text."""
    return (mx.arange(tokens)[None] < lengths[:, None])[:, None, None, :]


def window_mask(mask: mx.array, tokens: int, reach: int) -> mx.array:
    """Narrow a padding mask to keys at most `reach` tokens away: rows x 1 x tokens x tokens.

    A query that is padding sees itself: a row of scores that is masked whole would be no number.
    """
    places = mx.arange(tokens)
    distance = mx.abs(places[:, None] - places[None])
    return (mask & (distance <= reach)[None, None]) | (distance == 0)[None, None]


def attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    """Attend, in blocks of queries where all scores at once would take more than SCORE_BYTES.

    `mask` is true where a query may look at a key; its third dimension may be 1 for all queries.
    """
    rows, heads, tokens, width = queries.shape
    block = max(1, SCORE_BYTES // (4 * rows * heads * tokens))
    parts = []
    for begin in range(0, tokens, block):
        part = queries[:, :, begin : begin + block]
        visible = mask if mask.shape[2] == 1 else mask[:, :, begin : begin + block]
        if takes_numpy(queries):
            arrays = (np.asarray(each) for each in (part, keys, values, visible))
            parts.append(mx.array(_attended(*arrays)))
            continue
        parts.append(mx.fast.scaled_dot_product_attention(part, keys, values, scale=width**-0.5, mask=visible))
        if block < tokens:
            mx.eval(parts[-1])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _attended(queries: _Floats, keys: _Floats, values: _Floats, mask: npt.NDArray[np.bool_]) -> _Floats:
    found = np.empty_like(queries)
    hidden = ~mask

    def attend_rows(begin: int, end: int) -> None:
        own = slice(begin, end)
        scores = np.matmul(queries[own] * np.float32(queries.shape[-1] ** -0.5), keys[own].swapaxes(-1, -2))
        np.copyto(scores, -np.inf, where=hidden[own])
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        np.matmul(scores, values[own], out=found[own])

    share(attend_rows, len(queries), 1)
    return found
