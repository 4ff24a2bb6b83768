"""I/O: what a watcher says of itself, in a file beside the journal of its stack: `status` reads it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from schemas.base import Reported

QUIET_S = 180.0
"""A watcher looks every 45 seconds at least, and a look may take more; one whose report is older than this is not it
any more."""
WatcherState = Literal["well", "mending", "waiting", "blocked"]


class WatcherReport(Reported):
    """A watcher as it was at its last look. The file outlives it: whether it lives is for its pid to say."""

    version: Literal[1] = 1
    pid: int
    started_at: float
    """Seconds since the epoch, as all times here."""
    looked_at: float
    """When its last look ended."""
    state: WatcherState
    """`waiting`: for a backoff, a node or another command; `blocked`: a person has to do something."""
    notes: tuple[str, ...] = ()
    """Why it is waiting or blocked."""
    mended: int = 0
    """How often it has changed something since it started."""
    last_change: str | None = None
    """What it changed last."""
    last_change_at: float | None = None


def read_watcher(path: Path) -> WatcherReport | None:
    """Return what the stack's watcher said last; None where there is nothing to read."""
    try:
        return WatcherReport.from_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def living_watcher(path: Path, now: float) -> WatcherReport | None:
    """Return what the stack's watcher said last, if its process lives and has looked, or is at work, not long ago."""
    report = read_watcher(path)
    if report is None or (report.state != "mending" and now - report.looked_at > QUIET_S):
        return None
    try:
        os.kill(report.pid, 0)
    except PermissionError:
        return report
    except OSError:
        return None
    return report


def write_watcher(path: Path, report: WatcherReport) -> None:
    """Replace the file. A disk that is full does not end a watcher."""
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(report.model_dump_json() + "\n")
        temporary.replace(path)
