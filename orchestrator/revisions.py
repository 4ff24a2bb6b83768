"""I/O: what git knows of a configuration directory. It is only ever read; no checkout is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIT_TIMEOUT_S = 10.0
_SHORT_HASH = 7


@dataclass(frozen=True, slots=True)
class GitStamp:
    """The revision of the configuration's repository."""

    revision: str | None
    """Short commit hash; None outside a repository or before its first commit."""
    is_dirty: bool = False
    """Files of the configuration differ from that commit."""
    commit: str | None = None
    """Full commit hash."""

    @property
    def short(self) -> str | None:
        """Return the revision, with `+` behind it where files differ."""
        return None if self.revision is None else self.revision + ("+" if self.is_dirty else "")

    def __str__(self) -> str:
        if self.revision is None:
            return "an unversioned configuration"
        return self.revision + (" (uncommitted changes)" if self.is_dirty else "")


def git_stamp(conf: Path) -> GitStamp:
    """Read the revision of the repository that a configuration directory is in."""
    commit = _git(conf, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return GitStamp(None)
    full = commit.decode().strip()
    short = (_git(conf, "rev-parse", "--short", full) or b"").decode().strip() or full[:_SHORT_HASH]
    return GitStamp(short, bool(_git(conf, "status", "--porcelain", "--", ".")), full)


def files_at(conf: Path, commit: str, names: Sequence[str]) -> Mapping[str, bytes] | None:
    """Return files of a configuration directory as they were at a commit: path below it -> content.

    None where git does not know the commit, or it has not all of the files.
    """
    prefix = (_git(conf, "rev-parse", "--show-prefix") or b"").decode("utf-8", "surrogateescape").strip("\n")
    found = {name: _git(conf, "cat-file", "blob", f"{commit}:{prefix}{name}") for name in names}
    whole = {name: content for name, content in found.items() if content is not None}
    return whole if len(whole) == len(names) else None


def _git(conf: Path, *arguments: str) -> bytes | None:
    argv = ["git", "--no-optional-locks", "-C", str(conf), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
