"""I/O: read a checkpoint's weights into a module, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from runtime.worker.convert import native_precision
from runtime.worker.encode.modules import ModelFilesError

_PREFIXES = ("bert.", "roberta.", "model.")
"""What the backbone's weights are called in a checkpoint that has a head too."""
_HEAD = ("classifier.", "head.")
_ELSEWHERE = ("cls.", "lm_head.", "decoder.", "embeddings.position_ids", "embeddings.token_type_ids")
"""Heads for the training task, and buffers that hold no weights."""
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""What the first BERT checkpoints, converted from TensorFlow, call them."""


def read_weights(folder: Path) -> dict[str, mx.array]:
    """Return all arrays of the safetensors files in `folder`, not yet in memory; raises ModelFilesError."""
    paths = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelFilesError(f"{folder} has no safetensors file; weights in other formats (pickle, ONNX) are not read")
    weights: dict[str, mx.array] = {}
    for path in paths:
        loaded: Any = mx.load(str(path))
        weights.update(loaded)
    return weights


def split(weights: Mapping[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return the backbone's weights and the classifier's, by the names that our modules have."""
    backbone: dict[str, mx.array] = {}
    head: dict[str, mx.array] = {}
    for original, array in weights.items():
        prefix = next((prefix for prefix in _PREFIXES if original.startswith(prefix)), "")
        name = original.removeprefix(prefix)
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        if name.startswith(_ELSEWHERE):
            continue
        if not prefix and name.startswith(_HEAD):
            head[name] = array
        else:
            backbone[name] = array
    return backbone, head


def fill(
    module: nn.Module, weights: Mapping[str, mx.array], quantisation: Any, *, unused: tuple[str, ...] = ()
) -> None:
    """Give the module its weights, in a precision that this machine computes fast in.

    `quantisation` is what `config.json` says under that key. `unused` are the beginnings of names that a checkpoint
    may have beyond the module. Raises ModelFilesError where names or shapes differ.
    """
    if isinstance(quantisation, dict):
        nn.quantize(
            module,
            group_size=quantisation["group_size"],
            bits=quantisation["bits"],
            mode=quantisation.get("mode", "affine"),
            class_predicate=lambda path, part: hasattr(part, "to_quantized") and f"{path}.scales" in weights,
        )
    flat: Any = tree_flatten(module.parameters())
    wanted: dict[str, mx.array] = dict(flat)
    given = {name: array for name, array in weights.items() if name in wanted or not name.startswith(unused or "\0")}
    _compare(wanted, given)
    module.load_weights([(name, _fast(array)) for name, array in given.items()])
    module.eval()


def _compare(wanted: Mapping[str, mx.array], given: Mapping[str, mx.array]) -> None:
    missing, strange = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or strange:
        what = f"lacks {missing[0]}" if missing else f"holds {strange[0]}, which the architecture does not have"
        more = len(missing) + len(strange) - 1
        raise ModelFilesError(f"the checkpoint {what}{f' ({more} more such names)' if more else ''}")
    for name, array in wanted.items():
        if array.shape != given[name].shape:
            message = f"config.json says {tuple(array.shape)} for {name}; the checkpoint has {tuple(given[name].shape)}"
            raise ModelFilesError(message)


def _fast(array: mx.array) -> mx.array:
    is_half = array.dtype in {mx.float16, mx.bfloat16}
    return array.astype(mx.float32) if is_half and native_precision() == mx.float32 else array
