"""Pure: the context length that a model's own `config.json` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions", "n_ctx")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language part of the configuration of a model that has several parts."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def known_context(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that a model was made for; None where its configuration does not say."""
    text = text_config(config)
    return next((text[key] for key in _KEYS if isinstance(text.get(key), int)), None)
