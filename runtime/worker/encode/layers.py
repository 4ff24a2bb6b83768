"""I/O: the parts that encoder architectures share, on MLX."""

import sys
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
from mlx import nn

SCORE_BYTES = 256 * 1024 * 1024
"""Room for one block of attention scores. MLX's CPU backend keeps all of them at once: 8,192 tokens and 12 heads would
need 3.2 GB, and long texts are what encoders are asked for."""

ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
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
        if sys.platform != "linux" or mx.default_device().type != mx.DeviceType.cpu or x.dtype != mx.float32:
            out: mx.array = super().__call__(x)
            return out
        # Both are views of MLX's memory; only the product is copied.
        product = np.matmul(np.asarray(x).reshape(-1, x.shape[-1]), np.asarray(self.weight).T)
        if "bias" in self:
            product += np.asarray(self.bias)
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
        parts.append(mx.fast.scaled_dot_product_attention(part, keys, values, scale=width**-0.5, mask=visible))
        if block < tokens:
            mx.eval(parts[-1])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
