"""Pure: how much memory a prompt cache may take where nobody says it."""

from collections.abc import Mapping
from typing import Any

MOST_BYTES = 1 << 30
COUNTED_TOKENS = 4096
"""Tokens of each place of the batch for which a plan counts keys and values, see `orchestrator/memory.py`."""
_NUMBER_BYTES = 2


def default_bytes(config: Mapping[str, Any], max_batch: int, max_context: int | None, ranks: int) -> int:
    """Return 1 GiB, or less where a plan counts less for the keys and values of a whole batch: no node is surprised.

    `config` is the model's `config.json`. The same on every one of `ranks` ranks.
    """
    text = config.get("text_config")
    known: Mapping[str, Any] = text if isinstance(text, Mapping) else config
    layers, hidden, heads = (_count(known, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if layers is None or hidden is None or heads is None:
        return MOST_BYTES // ranks
    width = hidden // heads * (_count(known, "num_key_value_heads") or heads)
    limits = (COUNTED_TOKENS, _count(known, "max_position_embeddings"), max_context)
    tokens = min(limit for limit in limits if limit is not None)
    return min(MOST_BYTES, 2 * _NUMBER_BYTES * layers * width * tokens * max_batch) // ranks


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and value > 0 else None
