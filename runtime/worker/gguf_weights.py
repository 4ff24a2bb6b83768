"""Pure: what a GGUF file's names and shapes mean to MLX: configuration, tensor names, quantisation.

Weights themselves stay with the caller; nothing here imports mlx.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GROUP_SIZE = 32
"""Weights that share one scale in Q4_0, Q4_1 and Q8_0 (the block size of these GGUF types)."""

SUPPORTED_FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0"}
"""`general.file_type` values that MLX reads without requantising (GGUF specification, enum `llama_ftype`)."""
_OTHER_FILE_TYPES = {
    8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M",
    16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias|scales|biases)")
_TOP = re.compile(r"(\w+)\.(weight|bias|scales|biases)")


class UnsupportedModelError(ValueError):
    """An architecture, quantisation or tensor that cannot be converted; the message names it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a llama model that the conversion itself needs."""

    layers: int
    heads: int
    kv_heads: int
    context_length: int


def check_supported(metadata: Mapping[str, Any]) -> None:
    """Refuse, by name, what would convert into a model that answers nonsense.

    Raises UnsupportedModelError.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported; supported: 'llama'")
    file_type = metadata.get("general.file_type")
    if file_type not in SUPPORTED_FILE_TYPES:
        name = _OTHER_FILE_TYPES.get(file_type, f"file type {file_type}") if file_type is not None else "unknown"
        supported = ", ".join(SUPPORTED_FILE_TYPES.values())
        raise UnsupportedModelError(f"quantisation {name} is not supported; supported: {supported}")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedModelError(f"rope scaling {scaling!r} is not supported; supported: none")


def shape(metadata: Mapping[str, Any]) -> Shape:
    """Read the sizes that GGUF spells with the architecture's prefix."""
    heads = metadata["llama.attention.head_count"]
    return Shape(
        layers=metadata["llama.block_count"],
        heads=heads,
        kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        context_length=metadata["llama.context_length"],
    )


def mlx_name(name: str) -> str:
    """Translate one tensor's name.

    Raises UnsupportedModelError for a tensor that a llama model does not have.
    """
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    top = _TOP.fullmatch(name)
    if top and top[1] in _TOP_NAMES:
        return f"{_TOP_NAMES[top[1]]}.{top[2]}"
    raise UnsupportedModelError(f"tensor {name!r} is not part of a known llama model")


def quantization(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Describe the quantisation as `config.json` does, or None where no tensor is quantised.

    `shapes` maps MLX tensor names to shapes. A quantised matrix `x.weight` packs 32 / bits values in a word and has
    `x.scales` with one column a group, so the number of bits follows from the two widths. The commonest number is the
    default; the other matrices are named.
    """
    bits = {
        name.removesuffix(".scales"): shapes[f"{name.removesuffix('.scales')}.weight"][-1]
        * 32
        // (size[-1] * GROUP_SIZE)
        for name, size in shapes.items()
        if name.endswith(".scales")
    }
    if not bits:
        return None
    default = Counter(bits.values()).most_common(1)[0][0]
    config: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": default, "mode": "affine"}
    for path, count in sorted(bits.items()):
        if count != default:
            config[path] = {"group_size": GROUP_SIZE, "bits": count, "mode": "affine"}
    return config


def model_config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Build the content of `config.json`."""
    sizes = shape(metadata)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.context_length,
        "rms_norm_eps": float(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(metadata.get("llama.rope.freq_base", 10000.0)),
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": any(name.endswith("q_proj.bias") for name in shapes),
        "mlp_bias": any(name.endswith("gate_proj.bias") for name in shapes),
        **generation_config(metadata),
    }
    quantized = quantization(shapes)
    if quantized is not None:
        config["quantization"] = quantized
    return config


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Build the content of `generation_config.json`: the tokens that begin, end and pad a text."""
    keys = (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys}
    return {name: index for name, index in found.items() if index is not None}
