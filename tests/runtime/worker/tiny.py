"""I/O: tiny random models and a byte-level tokenizer, written once as an MLX directory."""

import importlib
import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 30_000
END = "<|end|>"
CORPUS = [
    "the quick brown fox jumps over the lazy dog and asks what the capital of France is",
    "user assistant system: the answer to the question is that the question has no answer",
]
# Refuses two users in a row, as the templates of Mistral and Gemma do.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first and message.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


LFM2: dict[str, object] = {
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 48,
    "block_ff_dim": 96,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention"],
}
"""What a model of convolutions and attention has besides in its `config.json`."""


def write_model(
    directory: Path, kind: str = "llama", layers: int = 2, seed: int = 7, intermediate: int = 96, **more: object
) -> Path:
    """Write a model of mlx-lm's type `kind`; the same every time for one seed. Its heads divide by 2 and 3.

    `more` are further keys of `config.json`.
    """
    tokenizer = _tokenizer()
    config = {
        "model_type": kind,
        "hidden_size": 48,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 8,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-5,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id(END),
        **more,
    }
    directory.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(directory / "model.safetensors"), _weights(config, seed), metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def _weights(config: dict[str, object], seed: int) -> dict[str, mx.array]:
    family = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(family.Model(family.ModelArgs.from_dict(config)).parameters()):
        key, draw = mx.random.split(key)
        is_norm = "norm" in name
        weights[name] = mx.ones_like(value) if is_norm else mx.random.normal(value.shape, scale=0.3, key=draw)
    # Answers end by length alone: the end token's logit is always 0, far below the largest of the others.
    names = ("lm_head.weight", "language_model.lm_head.weight", "model.embed_tokens.weight")
    head = next(weights[name] for name in names if name in weights)
    head[int(config["eos_token_id"])] = 0.0  # type: ignore[call-overload]
    return weights


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer
