"""Pure: whether a model can be spread over ranks, and how its layers are given out, for plan and worker alike.

What mlx-lm 0.32 can do is read from its sources: `Model.shard` (tensor) and `PipelineMixin` (pipeline).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Strategy = Literal["tensor", "pipeline"]
Backend = Literal["ring", "jaccl", "nccl"]

TENSOR_MODELS = frozenset(
    {
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v41", "deepseek_v41_text", "exaone_moe", "glm4_moe",
        "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "iquestcoder", "iquestloopcoder", "joyai_llm_flash", "kimi_k2",
        "kimi_k25", "kimi_k3", "llama", "longcat_flash", "longcat_flash_ngram", "minimax", "minimax_m2",
        "minimax_m3_vl", "ministral3", "mistral", "mistral4", "muse_spark", "prism_hadamard_qwen35", "qwen2", "qwen3",
        "qwen3_5", "qwen3_5_moe", "qwen3_moe", "solar_open", "step3p5", "xverse",
    }
)  # fmt: skip
"""Values of `model_type` whose model has `.shard`, with the names that mlx-lm maps to one of them."""
PIPELINE_MODELS = frozenset(
    {
        "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v41", "deepseek_v41_text", "glm4_moe",
        "glm4_moe_lite", "glm_moe_dsa", "joyai_llm_flash", "kimi_k2", "kimi_k25", "kimi_k3", "minimax_m3_vl",
        "ministral3", "mistral4", "muse_spark", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next",
        "solar_open",
    }
)  # fmt: skip
"""Values of `model_type` whose layers can be given to several ranks."""
UNBATCHED_MODELS = frozenset({"deepseek_v41", "deepseek_v41_text", "llama4"})
"""Values of `model_type` whose caches mlx-lm cannot merge: a worker, which computes in batches, refuses them."""
_DIVIDED = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
)
"""Numbers of `config.json` that a tensor group's size must divide."""
_INPUT_SIZES = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Sizes along which quantised weights are cut, so that whole quantisation groups must remain."""


def split_layers(shares: Sequence[int], layers: int) -> tuple[int, ...]:
    """Give `layers` to ranks in proportion to `shares`; every rank gets at least one.

    Shares that sum to the number of layers are the numbers of layers. Otherwise each rank gets the whole part of its
    proportion, and what is left goes, one each, to the largest remainders, the lower rank first.

    Raises ValueError where there are fewer layers than ranks.
    """
    if layers < len(shares):
        raise ValueError(f"{layers} layers cannot be given to {len(shares)} ranks")
    total = sum(shares)
    counts = [max(1, share * layers // total) for share in shares]
    # In units of 1/total, so that no rounding decides between two remainders.
    remainders = [share * layers - count * total for share, count in zip(shares, counts, strict=True)]
    while sum(counts) != layers:
        if sum(counts) < layers:
            rank = max(range(len(shares)), key=lambda rank: (remainders[rank], -rank))
            step = 1
        else:  # the ranks that were lifted to one layer took them from the largest
            rank = max(range(len(shares)), key=lambda rank: (counts[rank] > 1, -remainders[rank], -rank))
            step = -1
        counts[rank] += step
        remainders[rank] -= step * total
    return tuple(counts)


def sharding_problems(
    config: Mapping[str, Any], strategy: Strategy, backend: Backend, size: int, split: Sequence[int] | None = None
) -> list[str]:
    """Return why a model cannot run on `size` ranks, each with the model's own numbers; nothing where it can.

    `config` is the parsed `config.json` of the model's MLX directory.
    """
    text = config.get("text_config")
    text = {**config, **text} if isinstance(text, Mapping) else config
    if strategy == "tensor":
        return _tensor_problems(config, text, size)
    return _pipeline_problems(config, text, backend, size, split)


def _tensor_problems(config: Mapping[str, Any], text: Mapping[str, Any], size: int) -> list[str]:
    problems = _unsupported(config, TENSOR_MODELS, "tensor", PIPELINE_MODELS, "pipeline")
    problems += [
        f"{key} {value} does not divide by {size} ranks"
        for key in _DIVIDED
        if isinstance(value := text.get(key), int) and value % size
    ]
    quantization = config.get("quantization")
    group = quantization.get("group_size") if isinstance(quantization, Mapping) else None
    if isinstance(group, int) and not problems:
        problems += [
            f"{key} {value} over {size} ranks leaves {value // size}, not whole quantisation groups of {group}"
            for key in _INPUT_SIZES
            if isinstance(value := text.get(key), int) and value // size % group
        ]
    return problems


def _pipeline_problems(
    config: Mapping[str, Any], text: Mapping[str, Any], backend: Backend, size: int, split: Sequence[int] | None
) -> list[str]:
    problems = _unsupported(config, PIPELINE_MODELS, "pipeline", TENSOR_MODELS, "tensor")
    if backend == "nccl":
        problems.append("nccl carries no pipeline: MLX sends and receives with ring and jaccl only")
    layers = text.get("num_hidden_layers")
    if isinstance(layers, int) and layers < size:
        problems.append(f"num_hidden_layers {layers} is less than {size} ranks")
    if split is not None and len(split) != size:
        problems.append(f"split has {len(split)} shares for {size} ranks")
    return problems


def _unsupported(
    config: Mapping[str, Any], able: frozenset[str], strategy: str, others: frozenset[str], other: str
) -> list[str]:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return ["config.json names no model_type"]
    if kind in able:
        return []
    hint = f"; strategy: {other} can be used" if kind in others else ""
    return [f"mlx-lm has no {strategy} sharding for model_type {kind}{hint}"]
