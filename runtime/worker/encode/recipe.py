"""Pure: what a model directory's own files say about how its texts become vectors or scores.

Sources of the file formats: sentence-transformers 5 (`sentence_bert_config.json`, `config_sentence_transformers.json`;
see `modules` for the others) and transformers 5 (`config.json`, `tokenizer_config.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.worker.encode.modules import (
    Dense,
    Files,
    ModelFilesError,
    Modules,
    PoolingMode,
    names_logit_score,
    read_modules,
    read_object,
)
from schemas.model import ModelKind

Family = Literal["bert", "roberta", "modernbert", "decoder"]
Method = Literal["vector", "classifier", "yes-no", "listwise"]
"""What one text, pair or list of texts becomes: a vector, a classifier's score, the probability of the answer "yes",
or one vector for each document of a list and one for the query."""

_FAMILIES: Mapping[str, Family] = {
    "bert": "bert",
    "xlm-roberta": "roberta",
    "roberta": "roberta",
    "camembert": "roberta",
    "modernbert": "modernbert",
    "qwen2": "decoder",
    "qwen3": "decoder",
    "llama": "decoder",
    "mistral": "decoder",
}
"""By `model_type`. Decoders are those whose vectors are read behind the last token, with causal attention."""
_ARCHITECTURES: Mapping[str, str] = {
    "Bert": "bert",
    "XLMRoberta": "xlm-roberta",
    "Roberta": "roberta",
    "Camembert": "camembert",
    "ModernBert": "modernbert",
    "Qwen3": "qwen3",
    "Qwen2": "qwen2",
    "Llama": "llama",
    "Mistral": "mistral",
}
"""Beginnings of class names, for a `config.json` without `model_type`."""
LISTWISE_ARCHITECTURE = "JinaForRanking"
LEAST_QWEN3_DIMENSIONS = 32
"""The shortest vector that Qwen3-Embedding was trained for (its model card)."""
_NO_LIMIT = 1_000_000_000
"""Tokenizers without a limit name one above this."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Which lengths a vector may be cut to: those `listed`, or any from `least` on where none is."""

    least: int = 1
    listed: frozenset[int] = frozenset()

    def allow(self, length: int) -> bool:
        """Tell whether the model was trained for vectors of this length."""
        return length in self.listed if self.listed else length >= self.least


@dataclass(frozen=True, slots=True)
class Recipe:
    """How this model is computed and what surrounds its texts."""

    family: Family
    method: Method
    max_length: int
    """Tokens that one text, pair or list may have."""
    pooling: tuple[PoolingMode, ...] = ()
    """The vectors that these modes give are joined."""
    dense: tuple[Dense, ...] = ()
    is_normalised: bool = False
    is_lowercased: bool = False
    """Texts are lowercased before the tokenizer sees them."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What to put in front of a text, by the name of its use."""
    default_prompt: str | None = None
    """The name of the prompt for texts whose use nobody named."""
    cuts: Lengths | None = None
    """None for a model whose vectors must stay whole."""
    guesses: tuple[str, ...] = ()
    """What its files do not say and was assumed, for the log."""

    def query_prompt(self) -> str:
        """Return what stands before a query."""
        return self.prompts.get("query", "")

    def document_prompt(self) -> str:
        """Return what stands before a document."""
        return self.prompts.get("document", self.prompts.get("passage", ""))


CONFIG_FILES = (
    "config.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def read_recipe(files: Files, kind: ModelKind, *, ends_texts: bool, has_projector: bool) -> Recipe:
    """Decide how to compute the model for `kind`.

    `ends_texts` says that the tokenizer puts a token behind every text, as those of decoder embedders do and those
    of chat models do not. `has_projector` says that the weights hold a projector, as jina-reranker-v3's do.

    Raises ModelFilesError where the model is of another kind, or cannot be computed.
    """
    config = read_object(files, "config.json")
    architecture = _architecture(config)
    family = _family(config, architecture)
    if family == "decoder":
        return _decoder(files, config, architecture, kind, ends_texts=ends_texts, has_projector=has_projector)
    _check_encoder(config)
    max_length = _max_length(files, config, family)
    if architecture.endswith("ForSequenceClassification"):
        if kind != "reranking":
            raise _wrong_kind(architecture, "reranking", kind)
        return Recipe(family, "classifier", max_length, is_lowercased=_is_lowercased(files))
    if kind == "chat":
        raise _wrong_kind(architecture, "embedding", kind)
    return _vector_recipe(files, family, max_length, _cuts(files, config))


def check_chat(config: Mapping[str, Any]) -> None:
    """Raise ModelFilesError for a model that cannot chat, as far as `config.json` tells."""
    architecture = _architecture(config)
    if architecture == LISTWISE_ARCHITECTURE or architecture.endswith("ForSequenceClassification"):
        raise _wrong_kind(architecture, "reranking", "chat")
    kind = config.get("model_type") or _model_type(architecture)
    if isinstance(kind, str) and _FAMILIES.get(kind, "decoder") != "decoder":
        raise _wrong_kind(architecture or kind, "embedding", "chat")


def _decoder(
    files: Files,
    config: Mapping[str, Any],
    architecture: str,
    kind: ModelKind,
    *,
    ends_texts: bool,
    has_projector: bool,
) -> Recipe:
    max_length = _max_length(files, config, "decoder")
    is_listwise = architecture == LISTWISE_ARCHITECTURE or has_projector
    if is_listwise or names_logit_score(files):
        if kind != "reranking":
            raise _wrong_kind(architecture, "reranking", kind)
        return Recipe("decoder", "listwise" if is_listwise else "yes-no", max_length)
    if read_modules(files) is None and not ends_texts:
        if kind == "reranking" and config.get("model_type") == "qwen3":
            guess = "config.json does not tell Qwen3-Reranker from other Qwen3 models: taken for one"
            return Recipe("decoder", "yes-no", max_length, guesses=(guess,))
        raise _wrong_kind(architecture, "chat", kind)
    _check_causal(config)
    return _vector_recipe(files, "decoder", max_length, _cuts(files, config))


def _vector_recipe(files: Files, family: Family, max_length: int, cuts: Lengths | None) -> Recipe:
    settings = read_object(files, "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelFilesError("config_sentence_transformers.json:prompts must hold texts by name")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        message = f"config_sentence_transformers.json:default_prompt_name is {default!r}, which `prompts` does not hold"
        raise ModelFilesError(message)
    modules = read_modules(files)
    guesses: tuple[str, ...] = ()
    if modules is None:
        modules = Modules(("last",) if family == "decoder" else ("mean",), (), is_normalised=True)
        guesses = (f"there is no modules.json: {modules.pooling[0]} pooling and vectors of length one are assumed",)
    return Recipe(
        family=family,
        method="vector",
        max_length=max_length,
        pooling=modules.pooling,
        dense=modules.dense,
        is_normalised=modules.is_normalised,
        is_lowercased=_is_lowercased(files),
        prompts=prompts,
        default_prompt=default,
        cuts=cuts,
        guesses=guesses,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _model_type(architecture: str) -> str | None:
    return next((kind for start, kind in _ARCHITECTURES.items() if architecture.startswith(start)), None)


def _family(config: Mapping[str, Any], architecture: str) -> Family:
    """Return the family; a configuration that names nothing is BERT's, as the first sentence encoders were saved."""
    kind = config.get("model_type") or _model_type(architecture) or ("" if architecture else "bert")
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ModelFilesError(f"config.json:model_type is {kind or architecture!r}; this worker encodes with {known}")
    return _FAMILIES[kind]


def _check_encoder(config: Mapping[str, Any]) -> None:
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ModelFilesError(f"config.json:position_embedding_type is {positions!r}; only 'absolute' is supported")
    if config.get("is_decoder"):
        raise ModelFilesError("config.json:is_decoder is true: an encoder attends to both sides")
    _check_own_code(config)


def _check_causal(config: Mapping[str, Any]) -> None:
    """Refuse decoders that were turned into encoders: with causal attention their vectors would be wrong."""
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        raise ModelFilesError("config.json asks for attention to both sides, which decoders do not have here")
    _check_own_code(config)


def _check_own_code(config: Mapping[str, Any]) -> None:
    own = config.get("auto_map")
    if isinstance(own, dict) and any(str(name).startswith("AutoModel") for name in own):
        raise ModelFilesError("config.json:auto_map: the model is computed by code of its own, which is never run")


def _max_length(files: Files, config: Mapping[str, Any], family: Family) -> int:
    """Return the smallest of the limits that the files name; RoBERTa's table has two places before the first token."""
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and family == "roberta":
        pad = config.get("pad_token_id")
        positions -= (pad if isinstance(pad, int) else 1) + 1
    limits = (
        positions,
        read_object(files, "sentence_bert_config.json").get("max_seq_length"),
        read_object(files, "tokenizer_config.json").get("model_max_length"),
    )
    named = [limit for limit in limits if type(limit) is int and 0 < limit < _NO_LIMIT]
    if not named:
        raise ModelFilesError("config.json:max_position_embeddings is missing: the model names no length")
    return min(named)


def _is_lowercased(files: Files) -> bool:
    return read_object(files, "sentence_bert_config.json").get("do_lower_case") is True


def _cuts(files: Files, config: Mapping[str, Any]) -> Lengths | None:
    """Return the lengths of a model that was trained for short vectors too (Matryoshka).

    The keys are vLLM's; Qwen3-Embedding promises it in its card and names it nowhere.
    """
    for place in (config, read_object(files, "config_sentence_transformers.json")):
        listed = place.get("matryoshka_dimensions")
        if isinstance(listed, list) and listed:
            return Lengths(listed=frozenset(length for length in listed if type(length) is int))
        if place.get("is_matryoshka") is True:
            return Lengths()
    is_qwen3 = (config.get("model_type") or _model_type(_architecture(config))) == "qwen3"
    return Lengths(least=LEAST_QWEN3_DIMENSIONS) if is_qwen3 else None


def _wrong_kind(architecture: str, actual: ModelKind, asked: ModelKind) -> ModelFilesError:
    name = architecture or "this architecture"
    article = {"chat": "a chat", "embedding": "an embedding", "reranking": "a reranking"}[actual]
    return ModelFilesError(f"{name} is {article} model and was to be served as {asked}: set `kind: {actual}`")
