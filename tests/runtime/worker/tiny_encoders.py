"""I/O: tiny random checkpoints of every family that the worker encodes with, as sentence-transformers saves them.

Weights carry the names of transformers' checkpoints and are written without the code under test.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.runtime.worker.tiny import CORPUS

WIDTH, HEADS, INNER, POSITIONS = 24, 3, 40, 64
Weights = dict[str, np.ndarray]


@dataclass
class Checkpoint:
    """A model directory and what is in it."""

    directory: Path
    config: dict[str, Any]
    weights: Weights
    tokenizer: Tokenizer = field(repr=False)


class _Dice:
    def __init__(self, seed: int) -> None:
        self._dice = np.random.default_rng(seed)
        self.weights: Weights = {}

    def matrix(self, name: str, *shape: int) -> None:
        self.weights[name] = self._dice.normal(0, 0.3, shape).astype(np.float32)

    def linear(self, name: str, out: int, width: int, *, bias: bool = True) -> None:
        self.matrix(f"{name}.weight", out, width)
        if bias:
            self.matrix(f"{name}.bias", out)

    def norm(self, name: str, width: int = WIDTH, *, bias: bool = True) -> None:
        self.weights[f"{name}.weight"] = self._dice.uniform(0.5, 1.5, width).astype(np.float32)
        if bias:
            self.matrix(f"{name}.bias", width)


def write_bert(
    directory: Path, *, head: bool = False, roberta: bool = False, positions: int = POSITIONS, seed: int = 1
) -> Checkpoint:
    """Write a BERT or an XLM-RoBERTa; with a `head` a cross-encoder of one label, else a bare encoder."""
    cls, sep, pad = ("<s>", "</s>", "<pad>") if roberta else ("[CLS]", "[SEP]", "[PAD]")
    tokenizer = _tokenizer([pad, "x", cls, sep] if not roberta else [cls, pad, sep])
    double = [sep, sep] if roberta else [sep]
    kinds = (0, 0) if roberta else (0, 1)
    pair = [cls, f"$A:{kinds[0]}", *double, f"$B:{kinds[1]}", f"{sep}:{kinds[1]}"]
    _end(tokenizer, [cls, "$A", sep], pair)
    name = "XLMRoberta" if roberta else "Bert"
    config = {
        "architectures": [f"{name}{'ForSequenceClassification' if head else 'Model'}"],
        "model_type": "xlm-roberta" if roberta else "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": positions + (2 if roberta else 0),
        "type_vocab_size": 1 if roberta else 2,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": tokenizer.token_to_id(pad),
        **({"id2label": {"0": "LABEL_0"}} if head else {}),
    }
    dice = _Dice(seed)
    prefix = ("roberta." if roberta else "bert.") if head else ""
    dice.matrix(f"{prefix}embeddings.word_embeddings.weight", tokenizer.get_vocab_size(), WIDTH)
    dice.matrix(f"{prefix}embeddings.position_embeddings.weight", int(config["max_position_embeddings"]), WIDTH)
    dice.matrix(f"{prefix}embeddings.token_type_embeddings.weight", int(config["type_vocab_size"]), WIDTH)
    dice.norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(2):
        where = f"{prefix}encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dice.linear(f"{where}.attention.self.{part}", WIDTH, WIDTH)
        dice.linear(f"{where}.attention.output.dense", WIDTH, WIDTH)
        dice.norm(f"{where}.attention.output.LayerNorm")
        dice.linear(f"{where}.intermediate.dense", INNER, WIDTH)
        dice.linear(f"{where}.output.dense", WIDTH, INNER)
        dice.norm(f"{where}.output.LayerNorm")
    if not roberta:
        dice.linear(f"{prefix}pooler.dense", WIDTH, WIDTH)
    if head and roberta:
        dice.linear("classifier.dense", WIDTH, WIDTH)
        dice.linear("classifier.out_proj", 1, WIDTH)
    elif head:
        dice.linear("classifier", 1, WIDTH)
    return _write(directory, config, dice.weights, tokenizer)


def write_modernbert(directory: Path, *, head: bool = False, seed: int = 2) -> Checkpoint:
    """Write a ModernBERT of four layers, of which the middle two see four tokens to each side."""
    tokenizer = _tokenizer(["[PAD]", "[CLS]", "[SEP]"])
    _end(tokenizer, ["[CLS]", "$A", "[SEP]"], ["[CLS]", "$A", "[SEP]", "$B", "[SEP]"])
    config = {
        "architectures": ["ModernBertForSequenceClassification" if head else "ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "norm_eps": 1e-5,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "classifier_pooling": "mean",
        "pad_token_id": 0,
    }
    dice = _Dice(seed)
    prefix = "model." if head else ""
    dice.matrix(f"{prefix}embeddings.tok_embeddings.weight", tokenizer.get_vocab_size(), WIDTH)
    dice.norm(f"{prefix}embeddings.norm", bias=False)
    for layer in range(4):
        where = f"{prefix}layers.{layer}"
        if layer:
            dice.norm(f"{where}.attn_norm", bias=False)
        dice.linear(f"{where}.attn.Wqkv", 3 * WIDTH, WIDTH, bias=False)
        dice.linear(f"{where}.attn.Wo", WIDTH, WIDTH, bias=False)
        dice.norm(f"{where}.mlp_norm", bias=False)
        dice.linear(f"{where}.mlp.Wi", 2 * INNER, WIDTH, bias=False)
        dice.linear(f"{where}.mlp.Wo", WIDTH, INNER, bias=False)
    dice.norm(f"{prefix}final_norm", bias=False)
    if head:
        dice.linear("head.dense", WIDTH, WIDTH, bias=False)
        dice.norm("head.norm", bias=False)
        dice.linear("classifier", 1, WIDTH)
    return _write(directory, config, dice.weights, tokenizer)


def write_qwen3(directory: Path, use: str, seed: int = 3) -> Checkpoint:
    """Write a Qwen3, saved as Qwen3-Embedding (`embed`), Qwen3-Reranker (`yes-no`) or jina-reranker-v3 (`listwise`)."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|embed_token|>", "<|rerank_token|>"]
    tokenizer = _tokenizer(specials)
    tokenizer.add_tokens(["yes", "no", "<think>", "</think>"])
    if use == "embed":
        _end(tokenizer, ["$A", "<|endoftext|>"], ["$A", "$B", "<|endoftext|>"])
    is_bare = use == "embed"
    config = {
        "architectures": ["JinaForRanking" if use == "listwise" else "Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": INNER,
        "max_position_embeddings": 2048 if use != "embed" else POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    dice = _Dice(seed)
    prefix = "" if is_bare else "model."
    dice.matrix(f"{prefix}embed_tokens.weight", tokenizer.get_vocab_size(), WIDTH)
    for layer in range(2):
        where = f"{prefix}layers.{layer}"
        dice.norm(f"{where}.input_layernorm", bias=False)
        dice.norm(f"{where}.post_attention_layernorm", bias=False)
        for part, heads in (("q", 4), ("k", 2), ("v", 2)):
            dice.linear(f"{where}.self_attn.{part}_proj", heads * 8, WIDTH, bias=False)
        dice.norm(f"{where}.self_attn.q_norm", 8, bias=False)
        dice.norm(f"{where}.self_attn.k_norm", 8, bias=False)
        dice.linear(f"{where}.self_attn.o_proj", WIDTH, 32, bias=False)
        dice.linear(f"{where}.mlp.gate_proj", INNER, WIDTH, bias=False)
        dice.linear(f"{where}.mlp.up_proj", INNER, WIDTH, bias=False)
        dice.linear(f"{where}.mlp.down_proj", WIDTH, INNER, bias=False)
    dice.norm(f"{prefix}norm", bias=False)
    if use == "listwise":
        dice.linear("projector.0", WIDTH // 2, WIDTH, bias=False)
        dice.linear("projector.2", 16, WIDTH // 2, bias=False)
    return _write(directory, config, dice.weights, tokenizer)


def add_modules(
    directory: Path, *modes: str, normalise: bool = True, dense: np.ndarray | None = None, **files: Any
) -> None:
    """Add what sentence-transformers writes beside a model: modules, pooling, prompts."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _json(directory / "1_Pooling" / "config.json", {f"pooling_mode_{mode}": True for mode in modes})
    if dense is not None:
        modules.append(("2_Dense", "Dense"))
        _json(directory / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
        save_file({"linear.weight": dense}, directory / "2_Dense" / "model.safetensors")
    if normalise:
        modules.append(("3_Normalize", "Normalize"))
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(modules)
    ]
    _json(directory / "modules.json", entries)
    for name, content in files.items():
        _json(directory / f"{name}.json", content)


def _tokenizer(specials: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _end(tokenizer: Tokenizer, single: list[str], pair: list[str]) -> None:
    names = {part.split(":")[0] for part in [*single, *pair] if not part.startswith("$")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def _write(directory: Path, config: dict[str, Any], weights: Weights, tokenizer: Tokenizer) -> Checkpoint:
    directory.mkdir(parents=True, exist_ok=True)
    _json(directory / "config.json", config)
    save_file(weights, directory / "model.safetensors")
    # Published tokenizers cut and pad by themselves; the worker must not let them.
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Checkpoint(directory, config, weights, tokenizer)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
