"""I/O: the other proxies: where they are installed, and how each is started in front of the mock endpoint.

Each has an environment of its own below one folder; `install` makes those that are missing. Versions are fixed, so
that figures of two days can be compared. Peers run with as little as they can: one process, few logs, no database. The
gateway runs with all that it does for users: it asks for keys, judges, counts, breaks circuits and keeps receipts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.gateway.processes import Tree, running

KEY = "sk-bench"
"""What clients of the peers send; it opens nothing."""


@dataclass(frozen=True, slots=True)
class Front:
    """Something that clients can ask."""

    name: str
    port: int
    tree: Tree
    model: str = "mock"
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    """Whole lines that its clients send."""

    def load_arguments(self) -> list[str]:
        """Return how `bench.gateway.load` asks it."""
        headers = [argument for line in self.headers for argument in ("--header", line)]
        return ["--port", str(self.port), "--model", self.model, "--path", self.path, *headers]


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that can be measured."""

    name: str
    version: str
    program: str
    """Path of its program, relative to its folder; its presence says that the peer is installed."""
    installs: tuple[tuple[str, ...], ...]
    """Commands that install it; `{at}` is its folder, `{python}` this interpreter."""
    command: Callable[[Path, Path, int, int], Sequence[str | Path]]
    """Makes its command from its program, a folder for its files, its port and the endpoint's."""
    headers: Callable[[int], tuple[str, ...]] = lambda _: (f"authorization: Bearer {KEY}",)
    """Makes the lines that its clients send from the endpoint's port."""

    def found(self, folder: Path) -> Path | None:
        """Return its program where it is installed."""
        inside = folder / self.name / self.program
        if inside.exists():
            return inside
        on_path = shutil.which(self.program)
        return Path(on_path) if on_path else None

    def install(self, folder: Path) -> None:
        """Install it; raises `subprocess.CalledProcessError`."""
        at = folder / self.name
        at.mkdir(parents=True, exist_ok=True)
        for command in self.installs:
            subprocess.run([part.format(at=at, python=sys.executable) for part in command], check=True, cwd=at)

    @contextmanager
    def serving(self, folder: Path, place: Path, port: int, endpoint: int) -> Iterator[Front]:
        """Run it in front of the endpoint; its files are below `place`. Raises RuntimeError where it cannot start."""
        program = self.found(folder)
        if program is None:
            raise RuntimeError(f"{self.name} is not installed")
        at = place / self.name
        at.mkdir()
        command = self.command(program, at, port, endpoint)
        with running(command, port, at / "log", cwd=at) as tree:
            yield Front(self.name, port, tree, headers=self.headers(endpoint))


def _pip(requirement: str) -> tuple[tuple[str, ...], ...]:
    return (("{python}", "-m", "venv", "{at}"), ("{at}/bin/pip", "install", "--quiet", requirement))


def _litellm(program: Path, at: Path, port: int, endpoint: int) -> list[str | Path]:
    config = at / "config.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: mock\n"
        f"    litellm_params: {{model: openai/mock, api_base: 'http://127.0.0.1:{endpoint}/v1', api_key: none}}\n"
        "litellm_settings: {telemetry: false}\n"
        f"general_settings: {{master_key: {KEY}}}\n"
    )
    return [program, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def _vllm_router(program: Path, _: Path, port: int, endpoint: int) -> list[str | Path]:
    own = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 1)]
    return [program, *own, "--worker-urls", f"http://127.0.0.1:{endpoint}", "--log-level", "error"]


def _sglang_router(program: Path, at: Path, port: int, endpoint: int) -> list[str | Path]:
    launched = _vllm_router(program, at, port, endpoint)
    return [program, "launch", *launched[1:]]


def _portkey(program: Path, _: Path, port: int, __: int) -> list[str | Path]:
    return [program, f"--port={port}", "--headless"]


def _portkey_headers(endpoint: int) -> tuple[str, ...]:
    target = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{endpoint}/v1")
    return (f"authorization: Bearer {KEY}", *target)


def _nginx(program: Path, at: Path, port: int, endpoint: int) -> list[str | Path]:
    config = at / "nginx.conf"
    temporary = "".join(
        f"  {kind}_temp_path {at}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off;\nworker_processes 1;\npid {at}/pid;\nerror_log {at}/errors;\n"
        "events { worker_connections 4096; }\n"
        "http {\n"
        f"  access_log off;\n{temporary}"
        f"  upstream endpoint {{ server 127.0.0.1:{endpoint}; keepalive 256; }}\n"
        "  server {\n"
        f"    listen 127.0.0.1:{port} backlog=1024;\n    keepalive_requests 1000000;\n"
        "    location / { proxy_pass http://endpoint; proxy_http_version 1.1; proxy_set_header Connection ''; "
        "proxy_buffering off; }\n"
        "  }\n}\n"
    )
    return [program, "-c", config, "-p", at]


_HONO = ("@hono/node-server@1.13.7", "@hono/node-ws@1.2.0")
"""With the newer servers that npm chooses all of Portkey's streams end in status 500, `TypeError: immutable` (its issue
1389); measured with 1.14.2 and 1.19.19."""

PEERS = (
    Peer("nginx", "of the system", "nginx", (), _nginx),
    Peer("vllm-router", "0.1.17", "bin/vllm-router", _pip("vllm-router==0.1.17"), _vllm_router),
    Peer("sglang-router", "0.3.2", "bin/sglang-router", _pip("sglang-router==0.3.2"), _sglang_router),
    Peer(
        "portkey",
        "1.15.2",
        "node_modules/.bin/gateway",
        (("npm", "install", "--silent", "--prefix", "{at}", "@portkey-ai/gateway@1.15.2", *_HONO),),
        _portkey,
        _portkey_headers,
    ),
    Peer("litellm", "1.106.2", "bin/litellm", _pip("litellm[proxy]==1.106.2"), _litellm),
)
"""The fastest first. nginx checks and counts nothing: it is the limit of what one process can pass on."""
