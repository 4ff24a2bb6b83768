"""Pure: what a model's own files say of it: its `config.json`, or the header of a GGUF file."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.observed import ModelFacts

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"),
}
"""The names that families give to one fact, the usual one first."""
_GGUF_KEYS = {
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "hidden": "embedding_length",
    "intermediate": "feed_forward_length",
    "context": "context_length",
}
_SUFFIXES = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "ForSequenceClassification",
    "ForMaskedLM",
    "LMHeadModel",
    "Model",
)
_GGUF_MAGIC = b"GGUF"
_GGUF_SIZES = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def config_facts(
    config: Mapping[str, Any],
    weights_bytes: int | None,
    *,
    modules: Sequence[tuple[str, Mapping[str, Any]]] = (),
    licence: str | None = None,
) -> ModelFacts | None:
    """Return what a `config.json` says; None where it does not even say what kind of model it is.

    A model that also sees or hears has its language part's numbers in `text_config`. `modules` are the steps behind the
    model that its `modules.json` names, each with its type and its own configuration.
    """
    architecture = _architecture(config)
    if architecture is None:
        return None
    text = config.get("text_config")
    places = [config, text] if isinstance(text, Mapping) else [config]
    found = {fact: _number(places, names) for fact, names in _NAMES.items()}
    return ModelFacts(
        architecture,
        layers=found["layers"],
        heads=found["heads"],
        kv_heads=found["kv_heads"] or found["heads"],  # left out where every head has its own
        hidden=found["hidden"],
        intermediate=found["intermediate"],
        context=found["context"],
        weights_bytes=weights_bytes,
        dimensions=_vector_length(found["hidden"], modules),
        licence=licence,
    )


def card_licence(card: str) -> str | None:
    """Return the licence that a model's card (README.md) names in the YAML between the dashes at its top."""
    matter = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9._-]+)", matter[1], re.MULTILINE) if matter else None
    return named[1] if named else None


def _vector_length(hidden: int | None, modules: Sequence[tuple[str, Mapping[str, Any]]]) -> int | None:
    """Return the length of vectors: what pooling joins together, or what a dense layer behind it makes of that.

    The keys are those of sentence-transformers' `Pooling` and `Dense` modules.
    """
    length = hidden
    for kind, config in modules:
        if kind == "Pooling":
            width = _number([config], ("word_embedding_dimension", "embedding_dimension")) or length
            modes = sum(value is True for key, value in config.items() if key.startswith("pooling_mode_"))
            length = None if width is None else width * max(modes, 1)
        elif kind == "Dense":
            length = _number([config], ("out_features",)) or length
    return length


def gguf_facts(start: bytes, weights_bytes: int | None) -> ModelFacts | None:
    """Return what a GGUF file's header says, from the first bytes of the file; None where it is not one.

    The facts stand before the vocabulary, so that a few MiB are enough: https://github.com/ggml-org/ggml, docs/gguf.md.
    """
    values = _gguf_values(start)
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        return None
    found = {fact: values.get(f"{architecture}.{key}") for fact, key in _GGUF_KEYS.items()}
    numbers = {fact: value if isinstance(value, int) else None for fact, value in found.items()}
    return ModelFacts(
        architecture,
        layers=numbers["layers"],
        heads=numbers["heads"],
        kv_heads=numbers["kv_heads"] or numbers["heads"],
        hidden=numbers["hidden"],
        intermediate=numbers["intermediate"],
        context=numbers["context"],
        weights_bytes=weights_bytes,
        dimensions=numbers["hidden"],
    )


def _architecture(config: Mapping[str, Any]) -> str | None:
    """Return `model_type`, or what the class's name says where it is left out, as sentence-transformers may."""
    model_type, classes = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str) and model_type:
        return model_type
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        suffix = next((suffix for suffix in _SUFFIXES if classes[0].endswith(suffix)), "")
        return classes[0].removesuffix(suffix).lower() or None
    return None


def _number(places: list[Mapping[str, Any]], names: tuple[str, ...]) -> int | None:
    for place in places:
        for name in names:
            value = place.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


class _Reader:
    """Walks over the bytes of a header; IndexError where they end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        if size > len(self._data) - self._at:
            raise IndexError(size)
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """Return the next string."""
        return str(self.take(self.number("<Q")), "utf-8", "replace")


def _gguf_values(data: bytes) -> dict[str, int | float | str]:
    """Return the plain values before the vocabulary; of a list of numbers, one for each layer, the largest."""
    found: dict[str, int | float | str] = {}
    reader = _Reader(data)
    try:
        if reader.take(4) != _GGUF_MAGIC or reader.number("<I") < 2:
            return {}
        reader.take(8)  # how many tensors there are
        for _ in range(reader.number("<Q")):
            key = reader.text()
            if key.startswith("tokenizer."):
                break
            value = _value(reader, reader.number("<I"))
            if value is not None:
                found[key] = value
    except (IndexError, KeyError, RecursionError):  # cut off, or a type of a later version
        pass
    return found


def _value(reader: _Reader, kind: int) -> int | float | str | None:
    if kind == _STRING:
        return reader.text()
    if kind != _ARRAY:
        number: int | float = reader.number(_GGUF_SIZES[kind])
        return number
    of, count = reader.number("<I"), reader.number("<Q")
    read: Callable[[], int | float | str | None] = lambda: _value(reader, of)  # noqa: E731
    items = [read() for _ in range(count)]
    return max((item for item in items if isinstance(item, int)), default=None)
