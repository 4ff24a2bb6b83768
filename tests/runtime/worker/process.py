"""I/O: a worker as a real process on a free loopback port."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

DEADLINE_S = 180.0
T = TypeVar("T")


def wait_until(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Poll `look` until it returns something true; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


def spent_s(pid: int) -> float:
    """Return the processor time that a process has used, from Linux's `/proc`."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_idle(pids: list[int], span_s: float, most_s: float) -> None:
    """Wait for a span in which processes use less than `most_s` of processor time together.

    What was under way before, and what is done once in a while, may fall into the first one.
    """

    def is_idle() -> bool:
        before = sum(map(spent_s, pids))
        time.sleep(span_s)
        return sum(map(spent_s, pids)) - before < most_s

    wait_until(is_idle, f"they use less than {most_s:g} s of processor time within {span_s:g} s")


class Worker:
    """Starts `python -m runtime.worker`; as a context it ends it."""

    def __init__(
        self,
        model_dir: Path,
        log: Path,
        *arguments: str,
        token: str | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "ORCHESTRATE_WORKER_TOKEN"}
        if token is not None:
            environment["ORCHESTRATE_WORKER_TOKEN"] = token
        environment |= variables or {}
        command = [sys.executable, "-m", "runtime.worker", "--model-dir", str(model_dir), "--name", "tiny"]
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, "--port", "0", *arguments], stderr=stderr, stdin=subprocess.DEVNULL, env=environment
            )
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            port = wait_until(self._port, "the worker listens")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S, headers=headers)

    def _port(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.text()}")
        found = re.search(r"listening on 127\.0\.0\.1:(\d+) for", self.text())
        return found[1] if found else None

    def text(self) -> str:
        """Return what the worker has logged."""
        return self.log.read_text()

    def wait_ready(self) -> Self:
        """Wait for `/ready`."""
        wait_until(lambda: self.http.get("/ready").status_code == 200, "the worker is ready")
        return self

    def status(self) -> dict[str, Any]:
        """Return `/status`."""
        return self.http.get("/status").json()

    def wait_queue(self, batch: int, waiting: int) -> None:
        """Wait until so many requests run and wait; one is counted by how it ended before it leaves these figures."""

        def is_reached() -> bool:
            queue = self.status()["queue"]
            return (queue["batch"], queue["waiting"]) == (batch, waiting)

        wait_until(is_reached, f"{batch} requests run and {waiting} wait")

    def wait_empty(self) -> None:
        """Wait until every place is free: who left before is counted then."""
        self.wait_queue(0, 0)

    def chat(self, **body: Any) -> httpx.Response:
        """Post a chat."""
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, **body: Any) -> httpx.Response:
        """Post a text completion."""
        return self.http.post("/v1/completions", json=body)

    def text_of(self, **body: Any) -> str:
        """Return the text of a completion that must succeed."""
        response = self.complete(**body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    @contextlib.contextmanager
    def sending(self, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
        """Send a request, and leave when the block ends, whether it was answered or not."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        url = self.http.base_url
        with socket.create_connection((url.host, url.port), timeout=DEADLINE_S) as connection:
            connection.sendall(head.encode() + content)
            yield connection

    def terminate(self) -> None:
        """Send TERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
