"""I/O: run the shim as a node does, and clean up whatever a test left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orchestrator.node

SHIM = Path(orchestrator.node.__file__).with_name("shim.py")
DEADLINE_S = 120.0
GRACE_S = 60.0
"""For what ends when it is told to: on a busy machine also that takes a while."""
T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """Poll until `look` returns something true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return seen


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(place: Path) -> list[int]:
    """Return the processes whose command line names a path."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(place).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_locked(path: Path) -> bool:
    """Whether somebody holds the flock of a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Shim:
    """A node's state directory and the verbs on it."""

    def __init__(self, state: Path, stack: str = "lab") -> None:
        self.state = state
        self.stack = stack
        self.strays: list[int] = []
        self.verbs: list[subprocess.Popen[bytes]] = []

    def popen(self, verb: str, request: Any, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
        process = subprocess.Popen([sys.executable, "-S", str(SHIM), verb], **options)
        self.verbs.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        return process

    def request(self, **fields: Any) -> dict[str, Any]:
        return {"state": str(self.state), **fields}

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        out, _ = self.popen(verb, self.request(**fields)).communicate(timeout=DEADLINE_S)
        answer = json.loads(out)
        assert answer["version"] == 1
        return answer

    def start_request(self, unit: str, *argv: str, **fields: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {"env": {}, "cwd": "/", "labels": {}, "log_max_bytes": 1_000_000}
        defaults["grace_s"] = GRACE_S
        return self.request(stack=self.stack, unit=unit, argv=list(argv), **{**defaults, **fields})

    def start(self, unit: str, *argv: str, **fields: Any) -> dict[str, Any]:
        out, _ = self.popen("start", self.start_request(unit, *argv, **fields)).communicate(timeout=DEADLINE_S)
        return json.loads(out)

    def stop(self, unit: str, grace_s: float = GRACE_S) -> dict[str, Any]:
        return self.ask("stop", stack=self.stack, unit=unit, grace_s=grace_s)

    def units(self) -> dict[str, dict[str, Any]]:
        answer = self.ask("list", stack=self.stack, ports=[])
        assert answer["ok"], answer
        return {unit["unit"]: unit for unit in answer["units"]}

    def unit(self, unit: str) -> dict[str, Any]:
        return self.units()[unit]

    def dead(self, unit: str) -> dict[str, Any]:
        """Wait until a unit's lock is free and return its report."""
        return eventually(lambda: (seen := self.unit(unit)) and not seen["alive"] and seen)

    def directory(self, unit: str) -> Path:
        return self.state / "units" / self.stack / unit

    def record(self, unit: str) -> dict[str, Any]:
        return json.loads((self.directory(unit) / "record.json").read_text())

    def log(self, unit: str) -> str:
        return (self.directory(unit) / "log").read_text()

    def logged(self, unit: str, lines: int) -> list[str]:
        """Wait for the first whole lines of a unit's log."""
        return eventually(lambda: (seen := self.log(unit)).count("\n") >= lines and seen.splitlines())

    def clean_up(self) -> None:
        """End every verb still running, every unit there is, and every process that a test has named."""
        verbs, self.verbs = self.verbs, []
        for verb in verbs:
            verb.kill()
            for pipe in (verb.stdin, verb.stdout):
                if pipe is not None:
                    pipe.close()
            verb.wait()
        for directory in self.state.glob("units/*/*"):
            if is_locked(directory / "lock"):
                self.ask("stop", stack=directory.parent.name, unit=directory.name, grace_s=0)
        for pid in self.strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
