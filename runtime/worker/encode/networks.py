"""I/O: a loaded model as one network: tokens in, vectors or scores out, on MLX."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from runtime.worker.encode.bert import Bert, BertHead, BertShape, RobertaHead
from runtime.worker.encode.layers import ACTIVATIONS
from runtime.worker.encode.modernbert import ModernBert, ModernBertHead, ModernBertShape
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.packed import PackedBert, can_pack
from runtime.worker.encode.pooling import normalise, pool
from runtime.worker.encode.recipe import Recipe
from runtime.worker.encode.weights import fill, read_weights, split


@dataclass(frozen=True, slots=True)
class Network:
    """What is computed, and the modules that hold its weights."""

    module: nn.Module
    states: Callable[[mx.array, mx.array, mx.array], mx.array]
    """Takes tokens and types, rows x tokens, and lengths; returns hidden states, rows x tokens x width."""
    answers: Callable[[mx.array, mx.array], mx.array]
    """Takes hidden states with the rows' lengths, or one row's states with its marks; returns a vector for each."""
    dimensions: int | None
    """Length of the vectors; none where the answers are scores."""


class VectorHead(nn.Module):
    """Pooling, the dense layers behind it, and the normalisation, as the model's files name them."""

    def __init__(self, recipe: Recipe, directory: Path, width: int) -> None:
        super().__init__()
        self.dense: list[nn.Linear] = []
        self._recipe = recipe
        self.dimensions = width * len(recipe.pooling)
        for layer in recipe.dense:
            weights = read_weights(directory / layer.folder)
            named = {name.removeprefix("linear."): array for name, array in weights.items()}
            if "weight" not in named:
                raise ModelFilesError(f"{layer.folder} holds no linear layer")
            linear = nn.Linear(self.dimensions, named["weight"].shape[0], bias="bias" in named)
            fill(linear, named, None)
            self.dense.append(linear)
            self.dimensions = named["weight"].shape[0]

    def __call__(self, hidden: mx.array, lengths: mx.array) -> mx.array:
        """Return rows x dimensions."""
        vectors = pool(hidden, lengths, self._recipe.pooling)
        for linear, layer in zip(self.dense, self._recipe.dense, strict=True):
            vectors = linear(vectors)
            if layer.activation != "identity":
                vectors = ACTIVATIONS[layer.activation](vectors)
        return normalise(vectors) if self._recipe.is_normalised else vectors


def open_encoder(directory: Path, config: dict[str, Any], recipe: Recipe) -> Network:
    """Load an encoder with its head; raises ModelFilesError."""
    inner, outer = split(read_weights(directory))
    quantisation = config.get("quantization")
    is_classifier = recipe.method == "classifier"
    try:
        backbone, make_head = _backbone(config, recipe, is_classifier=is_classifier)
    except KeyError as error:
        raise ModelFilesError(f"config.json lacks {error.args[0]}") from error
    except ValueError as error:
        raise ModelFilesError(str(error)) from error
    fill(backbone, inner, quantisation, unused=("pooler.",))
    states = PackedBert(backbone) if isinstance(backbone, Bert) and can_pack(backbone) else backbone
    module = nn.Module()
    module.backbone = backbone
    if not is_classifier:
        head = VectorHead(recipe, directory, config["hidden_size"])
        module.head = head
        return Network(module, states, head, head.dimensions)
    scorer = make_head(_labels(outer))
    fill(scorer, outer, quantisation)
    module.head = scorer

    def score(hidden: mx.array, lengths: mx.array) -> mx.array:
        return mx.sigmoid(scorer(backbone, hidden, lengths).astype(mx.float32))

    return Network(module, states, score, None)


def _backbone(config: dict[str, Any], recipe: Recipe, *, is_classifier: bool) -> tuple[Any, Callable[[int], Any]]:
    """Return the backbone, without its weights, and what makes its classifier for a number of labels."""
    if recipe.family == "modernbert":
        modern = ModernBertShape.read(config)
        return ModernBert(modern), lambda labels: ModernBertHead(modern, labels)
    is_roberta = recipe.family == "roberta"
    shape = BertShape.read(config, is_roberta=is_roberta)
    make_head = RobertaHead if is_roberta else BertHead
    return Bert(shape, has_pooler=is_classifier and not is_roberta), lambda labels: make_head(shape, labels)


def _labels(head: dict[str, mx.array]) -> int:
    weight = head.get("classifier.out_proj.weight", head.get("classifier.weight"))
    if weight is None:
        raise ModelFilesError("the checkpoint holds no classifier")
    if weight.shape[0] != 1:
        message = f"the classifier has {weight.shape[0]} labels; a reranker has one, its score"
        raise ModelFilesError(message)
    return 1
