"""I/O: whether a draft model speaks a model's vocabulary, from the tokenizers of both in this machine's store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.models.store import Store
from orchestrator.models.sync import models_here
from orchestrator.models.wishes import Wish
from schemas.base import ModelName
from schemas.unit import ModelSpec

TOKENIZER = "tokenizer.json"


def foreign_tokens(
    store: Store, pairs: Iterable[tuple[ModelSpec, ModelSpec]]
) -> Mapping[tuple[ModelName, ModelName], str]:
    """Return a token that the model has not got, or under another id, for each (model, draft) that do not go together.

    Pairs of which one is not here, or has no `tokenizer.json`, are left out: the worker compares them when it starts.
    """
    found = {}
    for model, draft in pairs:
        wishes = Wish(model, "mlx"), Wish(draft, "mlx")
        here = models_here(store, wishes)
        if len(here) == len(set(wishes)):
            token = _foreign(*(_file(here[wish].path) for wish in wishes))
            if token is not None:
                found[model.name, draft.name] = token
    return found


_File = tuple[Path, int, int]
"""A file with what changes when it does: its time of change in nanoseconds, and its size."""


def _file(folder: Path) -> _File | None:
    path = folder / TOKENIZER
    try:
        status = path.stat()
    except OSError:
        return None
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _foreign(model: _File | None, draft: _File | None) -> str | None:
    """Compare two tokenizers; a watcher asks again and again, and the largest take half a second to read."""
    if model is None or draft is None or model == draft:
        return None
    try:
        ours, theirs = (_vocabulary(json.loads(path.read_bytes())) for path, _, _ in (model, draft))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return next((token for token, index in theirs.items() if ours.get(token) != index), None)


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens of a `tokenizer.json`, as transformers' `get_vocab` does."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids
        found = {str(piece[0]): index for index, piece in enumerate(vocabulary)}
    else:
        found = {str(token): int(index) for token, index in vocabulary.items()}
    return found | {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens") or ()}
