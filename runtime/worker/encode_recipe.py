"""Pure: what a model directory's own files say about how its texts become vectors or scores.

Sources of the file formats: sentence-transformers 5 (`modules.json`, `1_Pooling/config.json`,
`sentence_bert_config.json`, `config_sentence_transformers.json`) and transformers 5 (`config.json`,
`tokenizer_config.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "embedding", "reranking"]
Family = Literal["bert", "roberta", "modernbert", "decoder"]
Method = Literal["vector", "classifier", "yes-no", "listwise"]
"""What one text, pair or list of texts becomes: a vector, a classifier's score, the probability of the answer "yes",
or one vector for each document of a list and one for the query."""
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"]
Activation = Literal["tanh", "identity"]

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
_POOLING_KEYS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""In the order in which sentence-transformers joins the vectors of several modes."""
_POOLING_NAMES: Mapping[str, PoolingMode] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_ACTIVATIONS: Mapping[str, Activation] = {"Tanh": "tanh", "Identity": "identity"}
LISTWISE_ARCHITECTURE = "JinaForRanking"
LEAST_QWEN3_DIMENSIONS = 32
"""The shortest vector that Qwen3-Embedding was trained for (its model card)."""
_NO_LIMIT = 1_000_000_000
"""Tokenizers without a limit name one above this."""


class ModelFilesError(Exception):
    """The directory holds no model that this worker can serve as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer behind the pooling; its weights are in `folder`."""

    folder: str
    activation: Activation


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


Files = Mapping[str, Any]
"""Parsed JSON files, by their path in the model directory; absent ones are not in it."""
CONFIG_FILES = (
    "config.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def module_files(files: Files) -> tuple[str, ...]:
    """Return the paths of further files that `modules.json` names."""
    return tuple(f"{path}/config.json" for _, path in _modules(files) if path)


def read_recipe(files: Files, kind: Kind, *, ends_texts: bool, has_projector: bool) -> Recipe:
    """Decide how to compute the model for `kind`.

    `ends_texts` says that the tokenizer puts a token behind every text, as those of decoder embedders do and those
    of chat models do not. `has_projector` says that the weights hold a projector, as jina-reranker-v3's do.

    Raises ModelFilesError where the model is of another kind, or cannot be computed.
    """
    config = _object(files, "config.json")
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
    files: Files, config: Mapping[str, Any], architecture: str, kind: Kind, *, ends_texts: bool, has_projector: bool
) -> Recipe:
    max_length = _max_length(files, config, "decoder")
    is_listwise = architecture == LISTWISE_ARCHITECTURE or has_projector
    is_embedder = bool(_modules(files)) or ends_texts
    if is_listwise:
        if kind != "reranking":
            raise _wrong_kind(architecture, "reranking", kind)
        return Recipe("decoder", "listwise", max_length)
    if not is_embedder:
        if kind == "reranking" and config.get("model_type") == "qwen3":
            guess = "config.json does not tell Qwen3-Reranker from other Qwen3 models: taken for one"
            return Recipe("decoder", "yes-no", max_length, guesses=(guess,))
        raise _wrong_kind(architecture, "chat", kind)
    _check_causal(config)
    return _vector_recipe(files, "decoder", max_length, _cuts(files, config))


def _vector_recipe(files: Files, family: Family, max_length: int, cuts: Lengths | None) -> Recipe:
    modules = _modules(files)
    settings = _object(files, "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelFilesError("config_sentence_transformers.json:prompts must hold texts by name")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        message = f"config_sentence_transformers.json:default_prompt_name is {default!r}, which `prompts` does not hold"
        raise ModelFilesError(message)
    pooling, dense, is_normalised = _read_modules(files, modules)
    guesses: tuple[str, ...] = ()
    if not modules:
        pooling, is_normalised = ("last",) if family == "decoder" else ("mean",), True
        guesses = (f"there is no modules.json: {pooling[0]} pooling and vectors of length one are assumed",)
    return Recipe(
        family=family,
        method="vector",
        max_length=max_length,
        pooling=pooling,
        dense=dense,
        is_normalised=is_normalised,
        is_lowercased=_is_lowercased(files),
        prompts=prompts,
        default_prompt=default,
        cuts=cuts,
        guesses=guesses,
    )


def _read_modules(
    files: Files, modules: tuple[tuple[str, str], ...]
) -> tuple[tuple[PoolingMode, ...], tuple[Dense, ...], bool]:
    pooling: tuple[PoolingMode, ...] = ()
    dense: list[Dense] = []
    is_normalised = False
    for name, path in modules:
        match name:
            case "Transformer":
                pass
            case "Pooling":
                pooling = _pooling(files, f"{path}/config.json")
            case "Dense":
                dense.append(_dense(files, path))
            case "Normalize":
                is_normalised = True
            case _:
                raise ModelFilesError(f"modules.json names a module {name}, which this worker cannot compute")
    if modules and not pooling:
        raise ModelFilesError("modules.json names no pooling")
    return pooling, tuple(dense), is_normalised


def _modules(files: Files) -> tuple[tuple[str, str], ...]:
    """Return the class name and the folder of every module, in their order."""
    entries = files.get("modules.json")
    if entries is None:
        return ()
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelFilesError("modules.json must be a list of modules")
    found = []
    for entry in entries:
        path = str(entry.get("path", ""))
        if path.startswith("/") or ".." in path.split("/"):
            raise ModelFilesError(f"modules.json names a path outside of the model: {path!r}")
        found.append((str(entry.get("type", "")).rsplit(".", 1)[-1], path))
    return tuple(found)


def _pooling(files: Files, where: str) -> tuple[PoolingMode, ...]:
    config = _object(files, where)
    if config.get("include_prompt") is False:
        raise ModelFilesError(f"{where}:include_prompt is false: pooling without the prompt is not supported")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        if named not in _POOLING_NAMES:
            raise ModelFilesError(f"{where}:pooling_mode is {named!r}; known are {', '.join(_POOLING_NAMES)}")
        return (_POOLING_NAMES[named],)
    modes = tuple(mode for key, mode in _POOLING_KEYS.items() if config.get(key) is True)
    if not modes:
        raise ModelFilesError(f"{where} names no pooling mode")
    return modes


def _dense(files: Files, folder: str) -> Dense:
    where = f"{folder}/config.json"
    name = str(_object(files, where).get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise ModelFilesError(f"{where}:activation_function is {name}; known are {', '.join(_ACTIVATIONS)}")
    return Dense(folder, _ACTIVATIONS[name])


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
        _object(files, "sentence_bert_config.json").get("max_seq_length"),
        _object(files, "tokenizer_config.json").get("model_max_length"),
    )
    named = [limit for limit in limits if type(limit) is int and 0 < limit < _NO_LIMIT]
    if not named:
        raise ModelFilesError("config.json:max_position_embeddings is missing: the model names no length")
    return min(named)


def _is_lowercased(files: Files) -> bool:
    return _object(files, "sentence_bert_config.json").get("do_lower_case") is True


def _cuts(files: Files, config: Mapping[str, Any]) -> Lengths | None:
    """Return the lengths of a model that was trained for short vectors too (Matryoshka).

    The keys are vLLM's; Qwen3-Embedding promises it in its card and names it nowhere.
    """
    for place in (config, _object(files, "config_sentence_transformers.json")):
        listed = place.get("matryoshka_dimensions")
        if isinstance(listed, list) and listed:
            return Lengths(listed=frozenset(length for length in listed if type(length) is int))
        if place.get("is_matryoshka") is True:
            return Lengths()
    is_qwen3 = (config.get("model_type") or _model_type(_architecture(config))) == "qwen3"
    return Lengths(least=LEAST_QWEN3_DIMENSIONS) if is_qwen3 else None


def _object(files: Files, path: str) -> Mapping[str, Any]:
    value = files.get(path, {})
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path} must hold an object")
    return value


def _wrong_kind(architecture: str, actual: Kind, asked: Kind) -> ModelFilesError:
    name = architecture or "this architecture"
    article = {"chat": "a chat", "embedding": "an embedding", "reranking": "a reranking"}[actual]
    return ModelFilesError(f"{name} is {article} model and was to be served as {asked}: set `kind: {actual}`")
