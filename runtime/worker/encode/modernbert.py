"""I/O: ModernBERT on MLX: rotary positions, attention that is local in most layers, gated feed-forward layers.

Modules carry the names that transformers gives their weights.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from runtime.worker.encode.layers import Linear, activation, attend, join_heads, padding_mask, split_heads, window_mask
from runtime.worker.encode.pooling import pool

_GLOBAL_THETA = 160_000.0
_LOCAL_THETA = 10_000.0
"""What transformers takes where the configuration names no rotary base."""


@dataclass(frozen=True, slots=True)
class ModernBertShape:
    """The sizes of a ModernBERT."""

    vocabulary: int
    width: int
    heads: int
    inner: int
    epsilon: float
    activation: str
    is_global: tuple[bool, ...]
    """One for each layer: whether it attends to the whole text."""
    reach: int
    """How many tokens to each side a local layer sees."""
    global_theta: float
    local_theta: float
    has_norm_bias: bool
    has_attention_bias: bool
    has_inner_bias: bool
    has_head_bias: bool
    head_activation: str
    head_pooling: str

    @classmethod
    def read(cls, config: dict[str, Any]) -> "ModernBertShape":
        """Read `config.json`; raises KeyError for a size that is missing, ValueError for what is not supported."""
        layers = config["num_hidden_layers"]
        types = config.get("layer_types")
        every = config.get("global_attn_every_n_layers", 3)
        is_global = [kind == "full_attention" for kind in types] if types else [n % every == 0 for n in range(layers)]
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            epsilon=config.get("norm_eps", 1e-5),
            activation=config.get("hidden_activation", "gelu"),
            is_global=tuple(is_global),
            reach=config.get("local_attention", 128) // 2,
            global_theta=_theta(config, "full_attention", "global_rope_theta", _GLOBAL_THETA),
            local_theta=_theta(config, "sliding_attention", "local_rope_theta", _LOCAL_THETA),
            has_norm_bias=config.get("norm_bias", False),
            has_attention_bias=config.get("attention_bias", False),
            has_inner_bias=config.get("mlp_bias", False),
            has_head_bias=config.get("classifier_bias", False),
            head_activation=config.get("classifier_activation", "gelu"),
            head_pooling=config.get("classifier_pooling", "cls"),
        )


def _theta(config: dict[str, Any], layer: str, older_key: str, default: float) -> float:
    parameters = (config.get("rope_parameters") or {}).get(layer) or {}
    if parameters.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError("config.json asks for scaled rotary positions, which are not supported for ModernBERT")
    return float(parameters.get("rope_theta") or config.get(older_key) or default)


class ModernBert(nn.Module):
    """Turns tokens into one hidden state for each."""

    def __init__(self, shape: ModernBertShape) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.layers = [_Layer(shape, number) for number in range(len(shape.is_global))]
        self.final_norm = _norm(shape)
        self._reach = shape.reach

    def __call__(self, tokens: mx.array, _types: mx.array, lengths: mx.array) -> mx.array:
        """Take tokens, rows x tokens, and the rows' lengths; return rows x tokens x width."""
        count = tokens.shape[1]
        everywhere = padding_mask(lengths, count)
        nearby = window_mask(everywhere, count, self._reach)
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, everywhere if layer.is_global else nearby)
        states: mx.array = self.final_norm(hidden)
        return states


class ModernBertHead(nn.Module):
    """The classifier: pooling, a dense layer with a norm, then one linear layer."""

    def __init__(self, shape: ModernBertShape, labels: int) -> None:
        super().__init__()
        self.head = _Prediction(shape)
        self.classifier = Linear(shape.width, labels)
        self._pooling = shape.head_pooling

    def __call__(self, _backbone: ModernBert, hidden: mx.array, lengths: mx.array) -> mx.array:
        """Return rows x labels."""
        return self.classifier(self.head(pool(hidden, lengths, ("mean" if self._pooling == "mean" else "cls",))))


class _Prediction(nn.Module):
    def __init__(self, shape: ModernBertShape) -> None:
        super().__init__()
        self.dense = Linear(shape.width, shape.width, bias=shape.has_head_bias)
        self.norm = _norm(shape)
        self._activation = activation(shape.head_activation)

    def __call__(self, pooled: mx.array) -> mx.array:
        states: mx.array = self.norm(self._activation(self.dense(pooled)))
        return states


def _norm(shape: ModernBertShape) -> nn.LayerNorm:
    return nn.LayerNorm(shape.width, eps=shape.epsilon, bias=shape.has_norm_bias)


class _Embeddings(nn.Module):
    def __init__(self, shape: ModernBertShape) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.norm = _norm(shape)

    def __call__(self, tokens: mx.array) -> mx.array:
        states: mx.array = self.norm(self.tok_embeddings(tokens))
        return states


class _Layer(nn.Module):
    def __init__(self, shape: ModernBertShape, number: int) -> None:
        super().__init__()
        self.is_global = shape.is_global[number]
        # The embeddings were normed just before the first layer.
        self.attn_norm = _norm(shape) if number else nn.Identity()
        self.attn = _Attention(shape, shape.global_theta if self.is_global else shape.local_theta)
        self.mlp_norm = _norm(shape)
        self.mlp = _Gated(shape)

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        hidden = hidden + self.attn(self.attn_norm(hidden), mask)
        return hidden + self.mlp(self.mlp_norm(hidden))


class _Attention(nn.Module):
    def __init__(self, shape: ModernBertShape, theta: float) -> None:
        super().__init__()
        self.Wqkv = Linear(shape.width, 3 * shape.width, bias=shape.has_attention_bias)
        self.Wo = Linear(shape.width, shape.width, bias=shape.has_attention_bias)
        self._heads = shape.heads
        self._rope = nn.RoPE(shape.width // shape.heads, base=theta)

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        queries, keys, values = (split_heads(part, self._heads) for part in mx.split(self.Wqkv(hidden), 3, axis=-1))
        return self.Wo(join_heads(attend(self._rope(queries), self._rope(keys), values, mask)))


class _Gated(nn.Module):
    def __init__(self, shape: ModernBertShape) -> None:
        super().__init__()
        self.Wi = Linear(shape.width, 2 * shape.inner, bias=shape.has_inner_bias)
        self.Wo = Linear(shape.inner, shape.width, bias=shape.has_inner_bias)
        self._activation = activation(shape.activation)

    def __call__(self, hidden: mx.array) -> mx.array:
        values, gate = mx.split(self.Wi(hidden), 2, axis=-1)
        return self.Wo(self._activation(values) * gate)
