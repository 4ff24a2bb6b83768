"""I/O: what was applied, when, by whom, from which revision: one JSON line a generation."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.base import NodeName
from schemas.node import Node

GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class GitStamp:
    """The revision of the configuration's repository."""

    revision: str | None
    """Short commit hash; None outside a repository or before its first commit."""
    is_dirty: bool = False
    """Files of the configuration differ from that commit."""

    @property
    def short(self) -> str | None:
        """Return the revision, with `+` behind it where files differ."""
        return None if self.revision is None else self.revision + ("+" if self.is_dirty else "")

    def __str__(self) -> str:
        if self.revision is None:
            return "an unversioned configuration"
        return self.revision + (" (uncommitted changes)" if self.is_dirty else "")


@dataclass(frozen=True, slots=True)
class Generation:
    """One apply."""

    generation: int
    revision: str | None
    is_dirty: bool
    overrides: tuple[str, ...]
    owner: str
    """The configuration directory."""
    actor: str
    at: float
    """Seconds since the epoch."""
    changes: tuple[str, ...]
    outcome: str
    """`applied`, `partly applied` or `interrupted`."""


def git_stamp(conf: Path) -> GitStamp:
    """Read the revision of the repository that a configuration directory is in."""

    def git(*arguments: str) -> str | None:
        argv = ["git", "-C", str(conf), *arguments]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "--short", "HEAD")
    return GitStamp(revision, bool(git("status", "--porcelain", "--", "."))) if revision else GitStamp(None)


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
        self._lines = directory / "journal.jsonl"
        self._last_applied = directory / "last_applied.json"

    def last_generation(self) -> int:
        """Return the number of the last apply; 0 before the first."""
        try:
            lines = self._lines.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return 0
        for line in reversed(lines):
            try:
                return int(json.loads(line)["generation"])
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a crash; the one before it counts
        return 0

    def record(self, generation: Generation) -> None:
        """Append one apply; on disk when it returns."""
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        with self._lines.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
                file.write(b"\n")  # a crash tore the last line; it stays torn, and alone
            file.write(json.dumps({"version": 1, **asdict(generation)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remember_nodes(self, nodes: Mapping[NodeName, Node]) -> None:
        """Note the nodes of an apply, so that they are still looked at when they have left the files."""
        body = {"version": 1, "nodes": {name: node.model_dump(mode="json") for name, node in nodes.items()}}
        self._last_applied.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._last_applied.with_suffix(".tmp")
        temporary.write_text(json.dumps(body, indent=2) + "\n")
        temporary.replace(self._last_applied)

    def remembered_nodes(self) -> dict[NodeName, Node]:
        """Return the nodes of the last apply; empty where nothing can be read."""
        try:
            body: dict[str, Any] = json.loads(self._last_applied.read_text())
            return {NodeName(name): Node.model_validate(node) for name, node in body["nodes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
