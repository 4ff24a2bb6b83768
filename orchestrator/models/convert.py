"""I/O: run the converter that makes an MLX directory of a GGUF file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.models.errors import ConversionError
from orchestrator.models.work import ProgressEvent, Work, blame_disk, require_room

PROTOCOL_VERSION = 1
GROWTH = 1.25  # GGUF Q4_1 spends 4 of 24 bytes a block on float16 scale and offset; float32 ones make it 28


@dataclass(frozen=True, slots=True)
class Converter:
    """A program that converts: `argv` builds its command from the file to read and the directory to write.

    It prints JSON lines: `{"version": 1, "event": "progress", "phase": ..., "done": n, "total": n}`, and at the end
    `{"event": "done"}`, or `{"event": "error", "message": ...}` with exit code 1. `version` is noted in the manifest.
    """

    version: str
    argv: Callable[[Path, Path], Sequence[str]]


def worker_command(gguf: Path, out: Path) -> list[str]:
    """Return the command of the worker's own converter, which alone may import mlx."""
    return [sys.executable, "-P", "-m", "runtime.worker.convert", "--gguf", str(gguf), "--out", str(out)]


WORKER_CONVERTER = Converter("1", worker_command)


def convert(converter: Converter, gguf: Path, out: Path, work: Work) -> None:
    """Convert `gguf` into the new directory `out`. Raises ConversionError, or DiskFullError."""
    require_room(out.parent, int(gguf.stat().st_size * GROWTH))
    said: list[str] = []
    last: dict[str, Any] = {}

    def on_line(line: str) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "progress" and event.get("version", PROTOCOL_VERSION) == PROTOCOL_VERSION:
                work.progress(ProgressEvent("convert", event["done"], event["total"], "steps", event["phase"]))
            last.update(event)
        except (ValueError, KeyError, TypeError):
            said.append(line)  # a warning of a library, or a traceback

    code = work.run(converter.argv(gguf, out), on_line)
    if code == 0 and last.get("event") == "done":
        return
    blame_disk(out.parent)
    if last.get("event") == "error":
        reason = str(last.get("message"))
    else:
        reason = f"the converter ended with exit code {code}: " + ("\n".join(said[-20:]) or "it said nothing")
    raise ConversionError(f"{gguf.name} cannot be converted: {reason}")
