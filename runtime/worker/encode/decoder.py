"""I/O: decoders of mlx-lm as embedders and rerankers: what they compute is read behind certain tokens."""

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, load_model

from runtime.worker.convert import native_precision
from runtime.worker.encode.files import PROJECTOR_FILE
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.networks import Network, VectorHead
from runtime.worker.encode.recipe import Recipe
from runtime.worker.encode.weights import fill

CPU_BLOCK_TOKENS = 512
GPU_BLOCK_TOKENS = 4096
"""Tokens of a long text that are computed at once: the scores of attention grow with their number times the text's."""
_PROJECTOR = "projector."
_PROJECTOR_NAMES = {"0.weight": "inner.weight", "linear1.weight": "inner.weight"} | {
    "2.weight": "outer.weight",
    "linear2.weight": "outer.weight",
}
"""As the checkpoint and the file of its MLX version call them."""


class Projector(nn.Module):
    """jina-reranker-v3's two linear layers behind the marked tokens."""

    def __init__(self, width: int, inner: int, outer: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner, bias=False)
        self.outer = nn.Linear(inner, outer, bias=False)

    def __call__(self, states: mx.array) -> mx.array:
        """Return the vectors that are compared."""
        return self.outer(nn.relu(self.inner(states)))


def open_decoder(directory: Path, recipe: Recipe, answers: tuple[int, int] | None) -> Network:
    """Load a decoder with what reads its states; `answers` are the tokens of yes and no, for that method.

    Raises ModelFilesError, and what mlx-lm raises.
    """
    # The rows of a tied head are the embeddings: no memory is spent on a head that nothing reads.
    changes = {} if recipe.method == "yes-no" else {"tie_word_embeddings": True}
    extra: dict[str, mx.array] = {}
    loaded: Any = load_model(
        directory,
        lazy=True,
        model_config=changes,
        get_model_classes=lambda config: _classes(config, extra, keeps_head=not changes),
    )
    decoder, config = loaded
    if native_precision() == mx.float32:
        decoder.set_dtype(mx.float32)
    decoder.eval()
    module = nn.Module()
    module.backbone = decoder

    def states(tokens: mx.array, _types: mx.array, _lengths: mx.array) -> mx.array:
        # Padding stands behind the texts, where causal attention does not look.
        return hidden_states(decoder, tokens)

    if recipe.method == "vector":
        module.head = VectorHead(recipe, directory, config["hidden_size"])
        return Network(module, states, module.head, module.head.dimensions)
    if recipe.method == "listwise":
        projector = _projector(directory, extra, config["hidden_size"])
        module.head = projector

        def marked(hidden: mx.array, marks: mx.array) -> mx.array:
            return projector(hidden[0][marks]).astype(mx.float32)

        return Network(module, states, marked, None)
    if answers is None:
        raise AssertionError("the tokens of yes and no are missing")
    wanted = mx.array(answers)

    def probability(hidden: mx.array, lengths: mx.array) -> mx.array:
        last = hidden[mx.arange(hidden.shape[0]), lengths - 1]
        tied = not hasattr(decoder, "lm_head")
        logits = decoder.model.embed_tokens.as_linear(last) if tied else decoder.lm_head(last)
        yes, no = mx.split(logits[:, wanted].astype(mx.float32), 2, axis=-1)
        return mx.sigmoid(yes - no)

    return Network(module, states, probability, None)


def hidden_states(decoder: Any, tokens: mx.array, block: int | None = None) -> mx.array:
    """Return the states behind the last norm, computed in blocks of tokens where there are many."""
    is_on_cpu = mx.default_device().type == mx.DeviceType.cpu
    block = block or (CPU_BLOCK_TOKENS if is_on_cpu else GPU_BLOCK_TOKENS)
    count = tokens.shape[1]
    if count <= block:
        states: mx.array = decoder.model(tokens)
        return states
    cache = make_prompt_cache(decoder)
    parts = []
    for begin in range(0, count, block):
        parts.append(decoder.model(tokens[:, begin : begin + block], cache=cache))
        mx.eval(parts[-1])
    return mx.concatenate(parts, axis=1)


def _classes(config: dict[str, Any], extra: dict[str, mx.array], *, keeps_head: bool) -> tuple[Any, Any]:
    """Return mlx-lm's classes, taught the names of checkpoints that were saved without a head."""
    kind = config["model_type"]
    family = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    base: Any = family.Model

    class Decoder(base):  # type: ignore[misc]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            extra.update({name: array for name, array in weights.items() if name.startswith(_PROJECTOR)})
            kept = {}
            for name, array in weights.items():
                if name in extra or (name.startswith("lm_head.") and not keeps_head):
                    continue
                is_bare = not name.startswith(("model.", "lm_head."))
                kept[f"model.{name}" if is_bare else name] = array
            inherited = getattr(super(), "sanitize", None)
            return inherited(kept) if inherited else kept

    return Decoder, family.ModelArgs


def _projector(directory: Path, extra: dict[str, mx.array], width: int) -> Projector:
    found = extra
    if (directory / PROJECTOR_FILE).is_file():
        loaded: Any = mx.load(str(directory / PROJECTOR_FILE))
        found = loaded
    named = {_PROJECTOR_NAMES.get(name.removeprefix(_PROJECTOR), name): array for name, array in found.items()}
    if not {"inner.weight", "outer.weight"} <= named.keys():
        raise ModelFilesError(f"the projector's weights are {', '.join(sorted(found)) or 'missing'}; two are expected")
    projector = Projector(width, named["inner.weight"].shape[0], named["outer.weight"].shape[0])
    fill(projector, named, None)
    return projector
