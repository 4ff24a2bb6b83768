"""I/O: BERT's hidden states by numpy, where MLX computes on a Linux CPU.

Rows lie packed one behind the other, so that no padding is computed. Everything but attention is done token by token:
threads take shares of the rows, or of the tokens where rows are few.
1,000 texts of 16 tokens through MiniLM in seconds on two x86 cores: 3.2, against 6.4 on one of them and 8.8 by layers
that hand every result back to MLX.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from runtime.worker.encode.bert import Bert, BertLayer, BertShape
from runtime.worker.encode.layers import Linear, takes_numpy, write_gelu
from runtime.worker.encode.shares import cores, share, share_jobs, together

CHUNK = 2048
"""Tokens treated at once: BLAS puts the weights in order anew for every product, which few rows do not repay."""
LEAST_SHARE = 32
"""Tokens that are worth a thread of their own, where one of a few rows is computed by several."""
LEAST_ROWS = 4
"""Rows for each core from which on every core computes rows of its own."""
SCORES = 1 << 18
"""Attention scores kept at once by a thread: 1 MiB of them."""

_Floats = npt.NDArray[np.float32]
_Counts = npt.NDArray[np.int64]


def can_pack(backbone: Bert) -> bool:
    """Tell whether a model can be computed here: its weights are 32-bit numbers, and numpy is quicker with them."""
    weight = backbone.embeddings.word_embeddings.weight
    layers = backbone.encoder.layer
    is_plain = all(type(layer.intermediate.dense) is Linear for layer in layers)
    return backbone.shape.activation == "gelu" and is_plain and takes_numpy(weight)


class PackedBert:
    """A BERT's backbone, computed by numpy with the module's own weights."""

    def __init__(self, backbone: Bert) -> None:
        self.backbone = backbone
        self._shape = backbone.shape

    def __call__(self, tokens: mx.array, types: mx.array, lengths: mx.array) -> mx.array:
        """Take tokens and their types, rows x tokens, and the rows' lengths; return rows x tokens x width."""
        counts = np.asarray(lengths).astype(np.int64)
        # Rows of one length stand together: their attention is one product.
        order = np.argsort(counts, kind="stable")
        batch = _Batch(np.asarray(tokens), np.asarray(types), counts)
        found = np.zeros((*tokens.shape, self._shape.width), np.float32)
        if len(order) < LEAST_ROWS * cores():
            self._compute(batch, order, found, cores())
        else:
            parts = [order[part :: cores()] for part in range(cores())]
            together([functools.partial(self._compute, batch, part, found, 1) for part in parts])
        return mx.array(found)

    def _compute(self, batch: "_Batch", rows: _Counts, out: _Floats, threads: int) -> None:
        """Write the states of some rows, in ascending order of their lengths."""
        shape, weights = self._shape, self._weights
        counts, tokens = batch.counts[rows], batch.tokens[rows]
        places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        is_token = places < counts[:, None]
        states = weights.words[tokens[is_token]]
        states += weights.places[places[is_token] + shape.first_position]
        states += weights.types[batch.types[rows][is_token]]
        _Run(weights, shape, counts, states, threads).compute()
        padded = np.zeros((*tokens.shape, shape.width), np.float32)
        padded[is_token] = states
        out[rows] = padded

    @functools.cached_property
    def _weights(self) -> "_Weights":
        """Views of MLX's memory, taken when the weights are there."""
        table = self.backbone.embeddings
        words, places, types = table.word_embeddings, table.position_embeddings, table.token_type_embeddings
        return _Weights(
            _view(words.weight),
            _view(places.weight),
            _view(types.weight),
            _Norm.of(table.LayerNorm, self._shape),
            tuple(_Layer.of(layer, self._shape) for layer in self.backbone.encoder.layer),
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    tokens: npt.NDArray[np.integer]
    """Rows x places; what is behind a row's end is padding."""
    types: npt.NDArray[np.integer]
    counts: _Counts
    """The rows' lengths."""


@dataclass(frozen=True, slots=True)
class _Dense:
    weight: _Floats
    """Width before x width behind it."""
    bias: _Floats

    @classmethod
    def of(cls, layer: Linear) -> "_Dense":
        return cls(_view(layer.weight).T, _view(layer.bias))

    def into(self, out: _Floats, rows: _Floats) -> _Floats:
        np.matmul(rows, self.weight, out=out)
        out += self.bias
        return out


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: _Floats
    bias: _Floats
    epsilon: np.float32

    @classmethod
    def of(cls, norm: nn.LayerNorm, shape: BertShape) -> "_Norm":
        return cls(_view(norm.weight), _view(norm.bias), np.float32(shape.epsilon))

    def within(self, rows: _Floats) -> _Floats:
        """Normalise rows where they are."""
        rows -= rows.mean(axis=-1, keepdims=True)
        variance = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
        rows *= (1 / np.sqrt(variance + self.epsilon))[:, None]
        rows *= self.weight
        rows += self.bias
        return rows


@dataclass(frozen=True, slots=True)
class _Layer:
    query: _Dense
    key: _Dense
    value: _Dense
    joined: _Dense
    joined_norm: _Norm
    inner: _Dense
    outer: _Dense
    outer_norm: _Norm

    @classmethod
    def of(cls, layer: BertLayer, shape: BertShape) -> "_Layer":
        own, joined, outer = layer.attention.self, layer.attention.output, layer.output
        return cls(
            _Dense.of(own.query),
            _Dense.of(own.key),
            _Dense.of(own.value),
            _Dense.of(joined.dense),
            _Norm.of(joined.LayerNorm, shape),
            _Dense.of(layer.intermediate.dense),
            _Dense.of(outer.dense),
            _Norm.of(outer.LayerNorm, shape),
        )


@dataclass(frozen=True, slots=True)
class _Weights:
    words: _Floats
    places: _Floats
    types: _Floats
    norm: _Norm
    layers: tuple[_Layer, ...]


class _Run:
    """One batch on its way through the layers."""

    def __init__(self, weights: _Weights, shape: BertShape, counts: _Counts, states: _Floats, threads: int) -> None:
        """`counts` are the rows' lengths, in ascending order; `states` tokens x width, which become the result."""
        self._threads = threads
        self._layers = weights.layers
        self._norm = weights.norm
        self._shape = shape
        self._states = states
        self._queries, self._keys, self._values, self._attended = (np.empty_like(states) for _ in range(4))
        self._blocks = list(_blocks(counts, shape.heads))

    def compute(self) -> None:
        """Turn embeddings, not yet normalised, into hidden states."""
        count = len(self._states)
        share(self._begin, count, LEAST_SHARE, self._threads)
        for index in range(len(self._layers)):
            share_jobs([functools.partial(self._attend, block) for block in self._blocks], self._threads)
            share(functools.partial(self._go_on, index), count, LEAST_SHARE, self._threads)

    def _begin(self, begin: int, end: int) -> None:
        for part in _chunks(begin, end):
            self._norm.within(self._states[part])
            self._project(self._layers[0], part)

    def _go_on(self, index: int, begin: int, end: int) -> None:
        """Finish a layer behind its attention, and begin the next one."""
        layer, width = self._layers[index], self._shape.width
        parts = _chunks(begin, end)
        largest = max(part.stop - part.start for part in parts)
        joined = np.empty((largest, width), np.float32)
        inner = np.empty((largest, self._shape.inner), np.float32)
        for part in parts:
            size = part.stop - part.start
            states = layer.joined.into(joined[:size], self._attended[part])
            states += self._states[part]
            layer.joined_norm.within(states)
            between = layer.inner.into(inner[:size], states)
            write_gelu(between, between)
            found = layer.outer.into(self._states[part], between)
            found += states
            layer.outer_norm.within(found)
            if index + 1 < len(self._layers):
                self._project(self._layers[index + 1], part)

    def _project(self, layer: _Layer, part: slice) -> None:
        rows = self._states[part]
        queries = layer.query.into(self._queries[part], rows)
        queries *= np.float32((self._shape.width // self._shape.heads) ** -0.5)
        layer.key.into(self._keys[part], rows)
        layer.value.into(self._values[part], rows)

    def _attend(self, block: "_Block") -> None:
        queries, keys, values, out = (
            block.of(each, self._shape.heads) for each in (self._queries, self._keys, self._values, self._attended)
        )
        step = max(1, SCORES // (queries.shape[0] * queries.shape[1] * block.length))
        for begin in range(0, block.length, step):
            scores = np.matmul(queries[:, :, begin : begin + step], keys.swapaxes(-1, -2))
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[:, :, begin : begin + step] = np.matmul(scores, values)


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one length, or some heads of one row, that attend together."""

    begin: int
    """The first row's first token."""
    rows: int
    length: int
    heads: slice

    def of(self, states: _Floats, heads: int) -> _Floats:
        """Return a view of theirs: rows x heads x tokens x width of a head."""
        own = states[self.begin : self.begin + self.rows * self.length]
        return own.reshape(self.rows, self.length, heads, -1).transpose(0, 2, 1, 3)[:, self.heads]


def _blocks(counts: _Counts, heads: int) -> Iterator[_Block]:
    """Part rows, in ascending order of their lengths, so that every block's scores are few."""
    begin = 0
    for length, count in zip(*(each.tolist() for each in np.unique(counts, return_counts=True)), strict=True):
        of_row = heads * length * length
        if of_row > SCORES:
            step = max(1, SCORES // (length * length))
            for row in range(count):
                for head in range(0, heads, step):
                    yield _Block(begin + row * length, 1, length, slice(head, head + step))
        else:
            step = SCORES // of_row
            for row in range(0, count, step):
                yield _Block(begin + row * length, min(step, count - row), length, slice(None))
        begin += length * count


def _chunks(begin: int, end: int) -> list[slice]:
    """Part tokens in as few chunks as may be, of about one size: products of few rows are slow ones."""
    count = -(-(end - begin) // CHUNK)
    ends = [begin + (end - begin) * part // count for part in range(count + 1)]
    return [slice(*each) for each in itertools.pairwise(ends)]


def _view(array: mx.array) -> _Floats:
    return np.asarray(array)
