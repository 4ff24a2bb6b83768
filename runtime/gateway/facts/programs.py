"""Pure: which program serves an endpoint: the one that the files name, else the one that was recognised there."""

from __future__ import annotations

from collections.abc import Mapping

_PROGRAMS: Mapping[str, str] = {
    "mlx": "worker",
    "worker": "worker",
    "llama-server": "llama.cpp",
    "vllm": "vllm",
    "ollama": "ollama",
    "mlx-lm-server": "mlx_lm.server",
}
"""By the engine that the files name; `openai` and `command` can be any."""


def program_of(engine: str, seen: str) -> str:
    """Return the program of an engine; `seen` is what `Facts.source` says was recognised, empty where nothing was."""
    return _PROGRAMS.get(engine, seen)
