"""I/O: BERT and RoBERTa (XLM-R) on MLX. Modules carry the names that transformers gives their weights."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from runtime.worker.encode.layers import Linear, activation, attend, join_heads, padding_mask, split_heads


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    epsilon: float
    activation: str
    first_position: int
    """0 for BERT; RoBERTa counts from behind its padding token's id."""

    @classmethod
    def read(cls, config: dict[str, Any], *, is_roberta: bool) -> "BertShape":
        """Read `config.json`; raises KeyError for a size that is missing."""
        pad = config.get("pad_token_id")
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            types=config.get("type_vocab_size", 2),
            epsilon=config.get("layer_norm_eps", 1e-12),
            activation=config.get("hidden_act", "gelu"),
            first_position=(1 if pad is None else int(pad)) + 1 if is_roberta else 0,
        )


class Bert(nn.Module):
    """Turns tokens into one hidden state for each."""

    def __init__(self, shape: BertShape, *, has_pooler: bool) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = _Embeddings(shape)
        self.encoder = _Encoder(shape)
        if has_pooler:
            self.pooler = _Pooler(shape)

    def __call__(self, tokens: mx.array, types: mx.array, lengths: mx.array) -> mx.array:
        """Take tokens and their types, rows x tokens, and the rows' lengths; return rows x tokens x width."""
        hidden = self.embeddings(tokens, types)
        mask = padding_mask(lengths, tokens.shape[1])
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)
        return hidden


class BertHead(nn.Module):
    """BERT's classifier: the pooler's state of the first token, then one linear layer."""

    def __init__(self, shape: BertShape, labels: int) -> None:
        super().__init__()
        self.classifier = Linear(shape.width, labels)

    def __call__(self, backbone: Bert, hidden: mx.array, _lengths: mx.array) -> mx.array:
        """Return rows x labels."""
        return self.classifier(mx.tanh(backbone.pooler.dense(hidden[:, 0])))


class RobertaHead(nn.Module):
    """RoBERTa's classifier: two linear layers on the first token."""

    def __init__(self, shape: BertShape, labels: int) -> None:
        super().__init__()
        self.classifier = _RobertaClassifier(shape, labels)

    def __call__(self, _backbone: Bert, hidden: mx.array, _lengths: mx.array) -> mx.array:
        """Return rows x labels."""
        return self.classifier.out_proj(mx.tanh(self.classifier.dense(hidden[:, 0])))


class _RobertaClassifier(nn.Module):
    def __init__(self, shape: BertShape, labels: int) -> None:
        super().__init__()
        self.dense = Linear(shape.width, shape.width)
        self.out_proj = Linear(shape.width, labels)


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.token_type_embeddings = nn.Embedding(shape.types, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self._first = shape.first_position
        self._last = shape.positions - 1

    def __call__(self, tokens: mx.array, types: mx.array) -> mx.array:
        # Texts end before the table does; what is clipped is padding.
        places = mx.minimum(mx.arange(tokens.shape[1]) + self._first, self._last)
        states = self.word_embeddings(tokens) + self.position_embeddings(places) + self.token_type_embeddings(types)
        normed: mx.array = self.LayerNorm(states)
        return normed


class _Pooler(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = Linear(shape.width, shape.width)


class _Encoder(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.layer = [BertLayer(shape) for _ in range(shape.layers)]


class BertLayer(nn.Module):
    """Attention and what is behind it."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.attention = _Attention(shape)
        self.intermediate = _Dense(shape.width, shape.inner)
        self.output = _Output(shape.inner, shape)
        self._activation = activation(shape.activation)

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        """Return rows x tokens x width."""
        hidden = self.attention(hidden, mask)
        return self.output(self._activation(self.intermediate.dense(hidden)), hidden)


class _Attention(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.self = _SelfAttention(shape)
        self.output = _Output(shape.width, shape)

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        return self.output(self.self(hidden, mask), hidden)


class _SelfAttention(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.query = Linear(shape.width, shape.width)
        self.key = Linear(shape.width, shape.width)
        self.value = Linear(shape.width, shape.width)
        self._heads = shape.heads

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        queries, keys, values = (
            split_heads(project(hidden), self._heads) for project in (self.query, self.key, self.value)
        )
        return join_heads(attend(queries, keys, values, mask))


class _Dense(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = Linear(width_in, width_out)


class _Output(nn.Module):
    def __init__(self, width_in: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = Linear(width_in, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def __call__(self, values: mx.array, residual: mx.array) -> mx.array:
        states: mx.array = self.LayerNorm(self.dense(values) + residual)
        return states
