"""I/O: load a model directory with mlx-lm, telling how far it is."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from runtime.worker.contexts import known_context, text_config
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.recipe import check_chat
from runtime.worker.products import use_numpy
from runtime.worker.prompt import Limits
from runtime.worker.text import ByteDetokenizer, Detokenizer, WindowDetokenizer, byte_level_table, piece_bytes
from runtime.worker.tools.constrain import Grammars
from runtime.worker.tools.conversation import ToolSyntax, tool_syntax

logger = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 4096
"""For a model whose configuration names no length; `--max-context` overrides it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, and how to speak to it."""

    module: Any
    tokenizer: Any
    limits: Limits
    end_tokens: frozenset[int]
    size_bytes: int
    new_detokenizer: Callable[[], Detokenizer]
    token_bytes: Callable[[int], bytes]
    """Returns what a token stands for by itself; nothing for ids that pad the vocabulary."""
    grammars: Grammars
    """Compiles what answers are constrained to."""
    tool_syntax: ToolSyntax


def load(
    directory: Path,
    max_context: int | None,
    progress: Callable[[float], None],
    shard: Callable[[Any], None] = lambda _: None,
) -> LoadedModel:
    """Load weights and tokenizer from a local directory; nothing is ever downloaded and no code of the model is run.

    `max_context` lowers the context length. `progress` receives the share of the weights that are in memory. `shard`
    is called with the module before any weight is read, so that only what it leaves is.

    Raises ModelFilesError for a model of another kind or one that mlx-lm cannot compute in batches, and what mlx-lm
    raises; the caller cannot go on without a model.
    """
    import mlx_lm

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is not a model directory: it has no config.json")
    check_chat(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    loaded: Any = mlx_lm.load(str(directory), lazy=True, return_config=True)
    module, tokenizer, config = loaded
    shard(module)
    _check_caches(module)
    use_numpy(module)
    size = materialise(module, progress)
    vocabulary = _vocabulary(config, tokenizer)
    limits = Limits(
        context_length=_context_length(config, max_context),
        vocabulary=vocabulary,
        token_length=max(len(token) for token in tokenizer.get_vocab()),
    )
    end_tokens = frozenset(int(token) for token in tokenizer.eos_token_ids)
    grammars = Grammars(tokenizer, vocabulary, end_tokens)
    texts = _token_texts(tokenizer)
    return LoadedModel(module, tokenizer, limits, end_tokens, size, *texts, grammars, tool_syntax(tokenizer))


def _check_caches(module: Any) -> None:
    """Refuse what could only be computed for one request at a time: in mlx-lm 0.32 Llama 4 and DeepSeek V4.1."""
    from mlx_lm.models.cache import make_prompt_cache

    layers: Any = make_prompt_cache(module)
    for layer in layers:
        try:
            layer.merge([layer])
        except AttributeError as error:
            message = f"the model keeps a {type(layer).__name__}, with which mlx-lm computes one request at a time only"
            raise ModelFilesError(f"{message}; choose a model of another family") from error


def materialise(module: Any, progress: Callable[[float], None]) -> int:
    """Read the weights one by one; return their size in bytes."""
    flat: Any = tree_flatten(module.parameters())
    arrays: list[mx.array] = [array for _, array in flat]
    total = sum(array.nbytes for array in arrays)
    done = 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        progress(done / total)
    return total


def _context_length(config: dict[str, Any], max_context: int | None) -> int:
    known = known_context(config)
    if known is None:
        known = max_context or _DEFAULT_CONTEXT
        logger.warning("config.json names no context length: using %d", known)
    return min(known, max_context) if max_context else int(known)


def _vocabulary(config: dict[str, Any], tokenizer: Any) -> int:
    size = text_config(config).get("vocab_size")
    return size if isinstance(size, int) else len(tokenizer)


def _token_texts(tokenizer: Any) -> tuple[Callable[[], Detokenizer], Callable[[int], bytes]]:
    """Return what makes detokenizers, and what gives the bytes of one token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.decoder).__name__ == "ByteLevel":
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        table = byte_level_table(tokens, frozenset(tokenizer.added_tokens_decoder))
        return lambda: ByteDetokenizer(table), lambda token: table[token] if token < len(table) else b""
    literal = frozenset(tokenizer.added_tokens_decoder)

    def bytes_of(token: int) -> bytes:
        piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
        return piece_bytes(piece, is_literal=token in literal) if piece else b""

    return lambda: WindowDetokenizer(lambda tokens: str(tokenizer.decode(tokens))), bytes_of
