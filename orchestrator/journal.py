"""I/O: what was applied, when, by whom, from which revision: one JSON line a generation."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.revisions import GitStamp
from schemas.base import NodeName
from schemas.node import Node

JOURNAL_BYTES = 8 << 20
"""Size from which on the older half of a journal is dropped; an apply takes about 1 kB, so that is years of them."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One apply: by a person, or by the watcher when it changed something."""

    generation: int
    revision: str | None
    """Short commit hash of the configuration's repository."""
    is_dirty: bool
    """Files of the configuration differed from that commit."""
    overrides: tuple[str, ...]
    owner: str
    """The configuration directory."""
    actor: str
    at: float
    """When it began, seconds since the epoch."""
    changes: tuple[str, ...]
    outcome: str
    """`applied`, `partly applied` or `interrupted`."""
    command: str = "apply"
    """What was asked for: `apply`, `down`, `restart`, `rollback to 3`, or `watch` with what it mended."""
    commit: str | None = None
    """Full commit hash."""
    files: str | None = None
    """Digest of the files that were composed, see `orchestrator.snapshots`; None for `down`."""
    names: tuple[str, ...] = ()
    """Paths of those files below the configuration directory."""
    is_rollback: bool = False
    """Those files are not the ones in the directory: they are in force until the next apply."""
    duration_s: float | None = None
    failures: tuple[str, ...] = ()
    """What could not be done, with the reasons."""

    @property
    def git(self) -> GitStamp:
        """Return the revision as messages show it."""
        return GitStamp(self.revision, self.is_dirty, self.commit)


def actor() -> str:
    """Return who is applying, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class Journal:
    """The journal of one stack, and the note of the nodes it was last applied to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lines = directory / "journal.jsonl"
        self._last_applied = directory / "last_applied.json"

    def last_generation(self) -> int:
        """Return the number of the last apply; 0 before the first."""
        last = next(self.latest(), None)
        return 0 if last is None else last.generation

    def latest(self) -> Iterator[Generation]:
        """Yield what was recorded, latest first. Lines that a crash tore, or that mean nothing, are passed over."""
        try:
            lines = self._lines.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in reversed(lines):
            if (found := _generation(line)) is not None:
                yield found

    def find(self, number: int) -> Generation | None:
        """Return one apply, or None where there is no record of it."""
        return next((generation for generation in self.latest() if generation.generation == number), None)

    def record(self, generation: Generation) -> None:
        """Append one apply; on disk when it returns."""
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        with self._lines.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
                file.write(b"\n")  # a crash tore the last line; it stays torn, and alone
            file.write(json.dumps({"version": 1, **asdict(generation)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        if size > JOURNAL_BYTES:
            self._drop_older_half()

    def _drop_older_half(self) -> None:
        lines = self._lines.read_bytes().splitlines(keepends=True)
        temporary = self._lines.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.writelines(lines[len(lines) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._lines)

    def remember_nodes(self, nodes: Mapping[NodeName, Node], gateway: NodeName | None = None) -> None:
        """Note the nodes of an apply, so that they are still looked at when they have left the files.

        `gateway` is the one with the gateway, and with `routes.json`.
        """
        kept = {name: node.model_dump(mode="json") for name, node in nodes.items()}
        body = {"version": 1, "nodes": kept, "gateway": gateway}
        self._last_applied.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._last_applied.with_suffix(".tmp")
        temporary.write_text(json.dumps(body, indent=2) + "\n")
        temporary.replace(self._last_applied)

    def remembered_nodes(self) -> dict[NodeName, Node]:
        """Return the nodes of the last apply; empty where nothing can be read."""
        try:
            nodes = self._remembered()["nodes"]
            return {NodeName(name): Node.model_validate(node) for name, node in nodes.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def remembered_gateway(self) -> NodeName | None:
        """Return the node of the gateway of the last apply; None where nothing can be read."""
        try:
            name = self._remembered()["gateway"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return NodeName(name) if isinstance(name, str) else None

    def _remembered(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self._last_applied.read_text())
        return body


def known_numbers(generations: Iterable[Generation]) -> str:
    """Return the numbers of some applies in words, such as `1-4, 7`."""
    numbers = sorted({generation.generation for generation in generations})
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


_GENERATION: TypeAdapter[Generation] = TypeAdapter(Generation)


def _generation(line: bytes) -> Generation | None:
    try:
        return _GENERATION.validate_json(line)
    except ValidationError:
        return None
