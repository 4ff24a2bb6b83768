"""A stack of its own for a test: copied configuration, free ports, own state; driven through the real program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.ports import free_port, free_range
from tests.quickstart import without_encoder

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "orchestrate"
T = TypeVar("T")


def poll(what: Callable[[], T | None], deadline_s: float = 120.0) -> T:
    """Return the first true answer; fails at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"nothing within {deadline_s} s")


def heed_interrupts() -> None:
    """Undo, in a program to be, that a shell ignores interrupts for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Trial:
    """One copy of the shipped configuration, and everything that runs of one of its stacks."""

    def __init__(self, root: Path, state: Path, stack: str = "quickstart", model: Path | None = None) -> None:
        """`model` is an MLX directory that is served instead of the shipped model, under its name."""
        self.stack = stack
        self.root = root
        self.conf = root / "conf"
        self.state = state
        shutil.copytree(REPOSITORY / "conf", self.conf)
        self.file = self.conf / "stacks" / f"{stack}.yaml"
        self.port = free_port()
        shipped = {"quickstart": 8000, "trio": 8003}[stack]
        self.edit(f"port: {shipped}", f"port: {self.port}")
        first, last = free_range(32)
        node = self.conf / "nodes" / "local.yaml"
        node.write_text(node.read_text() + f"  ports: {first}-{last}\n")
        if stack == "quickstart":
            self.file.write_text(without_encoder(self.file.read_text()))
        if model is not None:
            path = self.conf / "models" / "smollm2-135m-instruct.yaml"
            path.write_text(f"smollm2-135m-instruct: {{source: 'path:{model}', memory_gib: 0.5}}\n")
        self.url = f"http://127.0.0.1:{self.port}"

    def edit(self, before: str, after: str) -> None:
        text = self.file.read_text()
        assert text.count(before) == 1, (before, text)
        self.file.write_text(text.replace(before, after))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "ORCHESTRATE_STATE": str(self.state), "NO_COLOR": "1"}

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        argv = [str(PROGRAM), *arguments]
        return subprocess.Popen(
            argv, cwd=self.root, env=self.environment(), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=300)
        assert code is None or process.returncode == code, f"{arguments} exited {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def json(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        lines = self.run(*arguments, "--json", code=code).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def units(self) -> dict[str, dict[str, Any]]:
        """Return the living units: slot -> what status says."""
        lines = self.json("status", self.stack)
        return {line["slot"]: line for line in lines if line["type"] == "unit" and line["alive"]}

    def wait_ended(self, slot: str, pid: int) -> None:
        """Wait until the end of a unit's process is recorded: until then commands take the unit to be alive."""
        poll(lambda: self.units().get(slot, {}).get("pid") != pid)

    def pids(self) -> dict[str, int]:
        return {slot: unit["pid"] for slot, unit in self.units().items()}

    def chat(self, model: str = "chat", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        request = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0, **body}
        return httpx.post(f"{self.url}/v1/chat/completions", json=request, timeout=60, trust_env=False)

    def answer(self) -> str:
        """Return what the model says to a question that must be answered: the same at every time."""
        response = self.chat()
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        assert text
        return text

    def admin(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/admin/config", timeout=60, trust_env=False).json()
        return answer

    def close(self) -> None:
        """Stop everything, by the program and then by force; fails where something was left."""
        shutil.rmtree(self.conf)
        shutil.copytree(REPOSITORY / "conf", self.conf)
        pids = self.recorded_pids()
        try:
            self.run("down", self.stack, "--yes", code=None)
        finally:
            left = [pid for pid in pids if is_alive(pid)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert not left, f"these were left behind: {left}"

    def recorded_pids(self) -> list[int]:
        """Return what runs of all that was ever started; the number of what has ended may be a stranger's by now."""
        records = [json.loads(path.read_text()) for path in (self.state / "units").glob("*/*/record.json")]
        return [pid for record in records if (pid := record.get("pid")) and started(pid) == record["started"]]


def content_of(path: Path) -> bytes:
    """Return what is in a file; nothing of what is none, or was one for a moment, as a database has them beside it."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    return _stat(pid)[:1] not in ([], ["Z"])


def started(pid: int) -> str | None:
    """Return when a process was started, as records say it; None without one. Its pid may be a later one's."""
    return next(iter(_stat(pid)[19:20]), None)


def _stat(pid: int) -> list[str]:
    """Return what proc(5) says of a process behind its name; nothing where it is gone, be it while this reads."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
