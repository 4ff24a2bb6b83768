"""I/O: the worker and stock `mlx_lm.server` of one model as processes, alone or as a group over a ring on loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from runtime.worker.group.control import new_keys

READY_S = 300.0
RUN_S = 900.0
"""What one request may take at most."""
WORKER, STOCK = "worker", "mlx_lm.server"


@dataclass(slots=True)
class Server:
    """A running server. A group has one process a rank, in their order."""

    name: str
    url: str
    model: str
    """What it calls the model."""
    processes: list[subprocess.Popen[bytes]]
    prefixes: Iterator[str] = field(default_factory=lambda: itertools.cycle(string.ascii_uppercase))
    """Begin the prompts, in turn: neighbouring ones differ from their first token on, so no prompt cache helps."""

    def spent_s(self) -> float:
        """Return the CPU time that all processes have used (Linux only)."""
        spent = 0
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            spent += int(fields[11]) + int(fields[12])
        return spent / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep all processes from running while the block runs: idle ranks of stock's each take a whole core."""
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.processes:
                process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all processes, stopped ones too."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody uses now."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def start_worker(model_dir: Path, place: Path, ranks: int = 1, *more: str) -> Server:
    """Start the worker as `ranks` processes; return when it has generated a token."""
    (port,) = free_ports(1)
    command = ["-m", "runtime.worker", "--model-dir", str(model_dir), "--name", "model", *more]
    if ranks == 1:
        processes = [_spawn([*command, "--port", str(port)], {})]
    else:
        control, *ring = free_ports(ranks + 1)
        keys = new_keys(ranks)
        hosts = _hostfile(place / f"worker-{port}.json", ring)
        group = ["--size", str(ranks), "--backend", "ring", "--strategy", "tensor", "--launch", str(port)]
        group += ["--control", f"127.0.0.1:{control}"]
        peers = " ".join(public for public, _ in keys)
        processes = []
        for rank in range(ranks):
            environment = {"MLX_RANK": str(rank), "MLX_HOSTFILE": hosts, "ORCHESTRATE_CONTROL_PEERS": peers}
            environment["ORCHESTRATE_CONTROL_SECRET"] = keys[rank][1]
            listen = ["--port", str(port)] if rank == 0 else []
            processes.append(_spawn([*command, *group, "--rank", str(rank), *listen], environment))
    server = Server(WORKER, f"http://127.0.0.1:{port}", "model", processes)
    _wait(server, "/ready")
    return server


def start_stock(model_dir: Path, place: Path, ranks: int = 1) -> Server:
    """Start stock `mlx_lm.server` as `ranks` processes, as `mlx.launch` does; return when it has generated a token."""
    (port,) = free_ports(1)
    command = ["-m", "mlx_lm.server", "--model", str(model_dir), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "ERROR"]
    if ranks == 1:
        processes = [_spawn(command, {})]
    else:
        hosts = _hostfile(place / f"stock-{port}.json", free_ports(ranks))
        processes = [_spawn(command, {"MLX_RANK": str(rank), "MLX_HOSTFILE": hosts}) for rank in range(ranks)]
    server = Server(STOCK, f"http://127.0.0.1:{port}", "default_model", processes)
    _wait(server, "/health")
    with httpx.Client(timeout=READY_S) as client:
        client.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}).raise_for_status()
    return server


def _spawn(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _hostfile(path: Path, ports: Sequence[int]) -> str:
    path.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    return str(path)


def _wait(server: Server, path: str) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        for rank, process in enumerate(server.processes):
            if process.poll() is not None:
                server.stop()
                raise RuntimeError(f"rank {rank} of {server.name} ended with {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}{path}", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    server.stop()
    raise RuntimeError(f"{server.name} did not answer {path} within {READY_S:g} s")


async def stream(client: httpx.AsyncClient, server: Server, path: str, body: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield the chunks of a streamed answer as JSON; raises httpx.HTTPError."""
    wanted = {"model": server.model, "temperature": 0, "stream": True, **body}
    async with client.stream("POST", f"{server.url}{path}", json=wanted) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def ratio_words(ours: float, theirs: float, unit: str) -> str:
    """Return both figures and how many times the worker's one is stock's."""
    return f"worker {ours:.3g} {unit}, mlx_lm.server {theirs:.3g} {unit}, ratio {ours / theirs:.3f}"
