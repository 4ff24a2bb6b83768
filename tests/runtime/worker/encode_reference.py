"""Pure: what the architectures compute, written down in numpy and 64-bit numbers, one text at a time, without padding.

From the papers and from transformers' modelling code; nothing here is shared with the worker.
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]
_erf = np.vectorize(math.erf, otypes=[float])


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def linear(weights: Weights, name: str, x: Array) -> Array:
    bias = weights.get(f"{name}.bias")
    out = x @ weights[f"{name}.weight"].T.astype(np.float64)
    return out if bias is None else out + bias


def layer_norm(weights: Weights, name: str, x: Array, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    out = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]
    return out + weights.get(f"{name}.bias", 0)


def rms_norm(weights: Weights, name: str, x: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]


def heads_of(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    mixed = softmax(np.where(visible, scores, -np.inf)) @ v
    return mixed.transpose(1, 0, 2).reshape(q.shape[1], -1)


def rope(x: Array, theta: float) -> Array:
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(x.shape[1]), theta ** (-np.arange(half) / half))
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def bert(config: dict[str, Any], weights: Weights, tokens: list[int], types: list[int], prefix: str = "") -> Array:
    """Return the hidden states of BERT or RoBERTa."""
    epsilon = config["layer_norm_eps"]
    first = config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0
    table = f"{prefix}embeddings."
    x = weights[f"{table}word_embeddings.weight"][tokens].astype(np.float64)
    x = x + weights[f"{table}position_embeddings.weight"][first : first + len(tokens)]
    x = x + weights[f"{table}token_type_embeddings.weight"][types]
    x = layer_norm(weights, f"{table}LayerNorm", x, epsilon)
    everything = np.ones((len(tokens), len(tokens)), bool)
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}encoder.layer.{layer}"
        q, k, v = (
            heads_of(linear(weights, f"{name}.attention.self.{part}", x), config["num_attention_heads"])
            for part in ("query", "key", "value")
        )
        mixed = linear(weights, f"{name}.attention.output.dense", attention(q, k, v, everything))
        x = layer_norm(weights, f"{name}.attention.output.LayerNorm", mixed + x, epsilon)
        inner = linear(weights, f"{name}.output.dense", gelu(linear(weights, f"{name}.intermediate.dense", x)))
        x = layer_norm(weights, f"{name}.output.LayerNorm", inner + x, epsilon)
    return x


def modernbert(config: dict[str, Any], weights: Weights, tokens: list[int], prefix: str = "") -> Array:
    """Return the hidden states of ModernBERT."""
    epsilon, heads = config["norm_eps"], config["num_attention_heads"]
    x = weights[f"{prefix}embeddings.tok_embeddings.weight"][tokens].astype(np.float64)
    x = layer_norm(weights, f"{prefix}embeddings.norm", x, epsilon)
    places = np.arange(len(tokens))
    near = abs(places[:, None] - places[None]) <= config["local_attention"] // 2
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{layer}"
        is_global = layer % config["global_attn_every_n_layers"] == 0
        normed = layer_norm(weights, f"{name}.attn_norm", x, epsilon) if layer else x
        q, k, v = (heads_of(part, heads) for part in np.split(linear(weights, f"{name}.attn.Wqkv", normed), 3, axis=-1))
        theta = config["global_rope_theta" if is_global else "local_rope_theta"]
        visible = np.ones_like(near) if is_global else near
        x = x + linear(weights, f"{name}.attn.Wo", attention(rope(q, theta), rope(k, theta), v, visible))
        values, gate = np.split(
            linear(weights, f"{name}.mlp.Wi", layer_norm(weights, f"{name}.mlp_norm", x, epsilon)), 2, axis=-1
        )
        x = x + linear(weights, f"{name}.mlp.Wo", gelu(values) * gate)
    return layer_norm(weights, f"{prefix}final_norm", x, epsilon)


def qwen3(config: dict[str, Any], weights: Weights, tokens: list[int]) -> Array:
    """Return the hidden states of Qwen3 behind its last norm."""
    epsilon = config["rms_norm_eps"]
    prefix = "model." if "model.norm.weight" in weights else ""
    x = weights[f"{prefix}embed_tokens.weight"][tokens].astype(np.float64)
    before = np.tril(np.ones((len(tokens), len(tokens)), bool))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{layer}"
        normed = rms_norm(weights, f"{name}.input_layernorm", x, epsilon)
        q = heads_of(linear(weights, f"{name}.self_attn.q_proj", normed), heads)
        k = heads_of(linear(weights, f"{name}.self_attn.k_proj", normed), kv_heads)
        v = heads_of(linear(weights, f"{name}.self_attn.v_proj", normed), kv_heads)
        q = rope(rms_norm(weights, f"{name}.self_attn.q_norm", q, epsilon), config["rope_theta"])
        k = rope(rms_norm(weights, f"{name}.self_attn.k_norm", k, epsilon), config["rope_theta"])
        k, v = (np.repeat(each, heads // kv_heads, axis=0) for each in (k, v))
        x = x + linear(weights, f"{name}.self_attn.o_proj", attention(q, k, v, before))
        normed = rms_norm(weights, f"{name}.post_attention_layernorm", x, epsilon)
        inner = silu(linear(weights, f"{name}.mlp.gate_proj", normed)) * linear(weights, f"{name}.mlp.up_proj", normed)
        x = x + linear(weights, f"{name}.mlp.down_proj", inner)
    return rms_norm(weights, f"{prefix}norm", x, epsilon)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x)
