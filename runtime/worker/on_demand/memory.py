"""I/O: give a dropped model's memory back to the system, and reckon what a model will need."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import mlx.core as mx

from runtime.worker.settings import Settings

OVERHEAD_SHARE = 0.2
"""Of the weights, for buffers and caches, where nobody says what the model needs."""
PROCESS_BYTES = 256 << 20
"""The interpreter and its libraries."""


def give_back() -> None:
    """Free what nothing refers to any more: reference cycles, MLX's buffers, and the allocator's empty pages."""
    gc.collect()
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed pages; other systems have no such call
    if trim is not None:
        trim(0)


def weights_of(settings: Settings) -> int:
    """Return the size of the weights files of a model and its draft, in bytes."""
    places = (settings.model_dir, settings.draft_dir)
    return sum(path.stat().st_size for place in places if place for path in Path(place).glob("*.safetensors"))


def need_bytes(settings: Settings) -> int:
    """Return what a loaded model may need in all, by the weights of it and its draft, and its prompt cache if set."""
    return int(weights_of(settings) * (1 + OVERHEAD_SHARE)) + (settings.prompt_cache_bytes or 0) + PROCESS_BYTES
