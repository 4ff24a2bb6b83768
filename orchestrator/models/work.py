"""I/O: one cancellable, observable piece of work on the store."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.models.errors import DiskFullError, InstallCancelledError, StoreError

Phase = Literal["download", "extract", "convert", "verify"]

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.1
NO_ROOM_BYTES = 1024 * 1024  # a tool that failed with less than this left has failed for lack of room


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """How far a phase is. `total` is None while it is unknown; `detail` names the file or the step."""

    phase: Phase
    done: int
    total: int | None
    unit: Literal["bytes", "steps"]
    detail: str


Progress = Callable[[ProgressEvent], None]
"""Is called often, in the thread that installs; what it raises ends the installation."""


class Work:
    """What every step of an installation needs: where to report, when to stop, what children keep open.

    `keep_open` are descriptors for the children to inherit: with the store's lock among them, the next installer stays
    out of the folder until the last child of a killed caller is gone.
    """

    def __init__(self, progress: Progress, cancel: threading.Event, keep_open: Sequence[int] = ()) -> None:
        self.progress = progress
        self._cancel = cancel
        self._keep_open = tuple(keep_open)

    def check(self) -> None:
        """Raise InstallCancelledError once the caller has cancelled."""
        if self._cancel.is_set():
            raise InstallCancelledError("cancelled; run apply again to go on")

    def pause(self) -> None:
        """Wait a moment, less when cancelled."""
        self._cancel.wait(POLL_S)
        self.check()

    def run(self, argv: Sequence[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> int:
        """Run a tool, give each line of its stdout and stderr to `on_line`, and return the exit code.

        `env` is added to our environment. Whatever raises here, cancelling and interrupts included, kills the tool
        with its process group. Our own end does so too: the guard around the tool sees its stdin end.
        """
        with subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
            pass_fds=self._keep_open,
        ) as process:
            try:
                for line in self._lines(process):
                    on_line(line)
                return process.wait()
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[str]:
        assert process.stdout is not None  # noqa: S101 - it was opened as a pipe
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                self.check()
                if not selector.select(POLL_S):
                    continue
                block = os.read(process.stdout.fileno(), 64 * 1024)
                if not block:
                    break
                *lines, rest = (rest + block).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
        if rest:
            yield rest.decode("utf-8", "replace")


def require_room(folder: Path, need_bytes: int) -> None:
    """Raise DiskFullError when `need_bytes` more will not fit into the file system of `folder`."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise DiskFullError(str(folder), need_bytes, free_bytes)


def blame_disk(folder: Path) -> None:
    """Raise DiskFullError if there is next to no room, so that a tool's own words need not be understood."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NO_ROOM_BYTES:
        raise DiskFullError(str(folder), None, free_bytes)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Convert what the file system refuses into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(str(folder), None, shutil.disk_usage(folder).free) from error
        raise StoreError(f"{error.filename or folder}: {error.strerror or error}") from error
