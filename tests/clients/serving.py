"""I/O: what the clients are tried against: one gateway with every backend behind it, and one that asks for keys.

The backends are real and serve the quickstart model: our worker, llama.cpp's `llama-server` as somebody else's helper,
and mlx-lm's stock server; for vectors our worker with the quickstart encoder, and llama.cpp with the chat model.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.e2e.conftest import trial_in
from tests.e2e.trial import Trial, poll
from tests.ports import free_port

CONTEXT = 2048
"""Tokens that each slot of llama-server reads."""
START_S = 120.0

STACK = """\
# @package _global_
defaults:
  - /nodes: [local]
  - /models: [smollm2-135m-instruct, all-minilm-l6-v2]
  - _self_
stack: quickstart
services:
  worker: {{model: smollm2-135m-instruct, nodes: [local]}}
  stock: {{model: smollm2-135m-instruct, engine: mlx-lm-server, nodes: [local], max_batch: 2}}
  encoder: {{model: all-minilm-l6-v2, nodes: [local]}}
helpers:
  llama-cpp: {{url: "{llama}", models: {{smollm2: {{}}}}}}
  llama-cpp-embed: {{url: "{embed}", models: {{smollm2-embed: {{}}}}}}
roles:
  chat: {{endpoints: {{worker: {{service: worker}}}}}}
  llama: {{endpoints: {{llama-cpp: {{helper: llama-cpp, model: smollm2}}}}}}
  stock-chat: {{endpoints: {{stock: {{service: stock}}}}}}
  embedding:
    endpoints: {{encoder: {{service: encoder}}}}
    dimensions: 384
    timeouts: {{total_s: 120}}
  llama-embedding:
    endpoints: {{llama-cpp-embed: {{helper: llama-cpp-embed, model: smollm2-embed}}}}
    dimensions: 576
    timeouts: {{total_s: 120}}
  reranking: {{endpoints: {{encoder: {{service: encoder}}}}, fallback: skip}}
gateway: {{node: local, bind: 127.0.0.1, port: {port}}}
"""

KEYED = """\
# @package _global_
defaults:
  - /nodes: [local]
  - _self_
stack: quickstart
helpers:
  llama-cpp: {{url: "{llama}", models: {{smollm2: {{}}}}}}
roles:
  chat: {{endpoints: {{llama-cpp: {{helper: llama-cpp, model: smollm2}}}}}}
gateway: {{node: local, bind: 127.0.0.1, port: {port}, auth: {{keys_file: secrets/keys.yaml}}}}
"""


@dataclass(frozen=True, slots=True)
class Backend:
    """A program that answers, and the names under which the gateway offers its models."""

    name: str
    """As in the published table."""
    model: str
    answers_as: str
    """What it calls the model itself."""
    embedding: str = ""
    """Empty where it makes no vectors."""
    dimensions: int = 0
    reranking: str = ""
    context: int = 0
    """Tokens of the longest prompt, where it tells a longer one from others; else 0."""


WORKER = Backend("our worker", "chat", "smollm2-135m-instruct", "embedding", 384, "reranking", 8192)
LLAMA = Backend("llama.cpp", "llama", "smollm2", "llama-embedding", 576, context=CONTEXT)
STOCK = Backend("mlx_lm.server", "stock-chat", "default_model")
BACKENDS = (WORKER, LLAMA, STOCK)


@dataclass(frozen=True, slots=True)
class Direct:
    """A backend without the gateway."""

    url: str
    model: str
    """What it calls the model itself."""
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything that runs."""

    trial: Trial
    llama_url: str
    embed_url: str
    keyed_url: str
    key: str

    @property
    def url(self) -> str:
        return self.trial.url

    def setting(self, backend: Backend) -> str:
        """Return what a client's program is told, as JSON."""
        return json.dumps(
            {
                "url": self.url,
                "model": backend.model,
                "answers_as": backend.answers_as,
                "embedding": backend.embedding,
                "dimensions": backend.dimensions,
                "reranking": backend.reranking,
                "context": backend.context,
                "keyed_url": self.keyed_url,
                "key": self.key,
            }
        )

    def direct(self, role: str) -> Direct:
        """Return where the one endpoint of a role is asked without the gateway."""
        helpers = {"llama": (self.llama_url, "smollm2"), "llama-embedding": (self.embed_url, "smollm2-embed")}
        if role in helpers:
            return Direct(*helpers[role], headers={})
        service = {"chat": "worker", "stock-chat": "stock", "embedding": "encoder"}[role]
        kept = self.trial.state / "stacks" / self.trial.stack
        routes = json.loads((kept / "routes.json").read_text())
        (instance,) = (each for each in routes["instances"] if each["service"] == service)
        token = (kept / "worker.token").read_text().strip()
        model = instance["upstream_model"] or instance["model"]
        return Direct(instance["url"], model, {"authorization": f"Bearer {token}"})


@contextmanager
def serving(root: Path, cache: Path, program: Path, gguf: Path) -> Iterator[Serving]:
    """Start everything, and stop all of it by its process ids.

    `cache` is a store that holds the quickstart models, `program` llama.cpp's server, and `gguf` the model it serves.
    """
    slots = ("--ctx-size", str(4 * CONTEXT), "--parallel", "4", "--jinja")
    with (
        llama_server(program, gguf, "smollm2", root / "llama.log", *slots) as llama,
        llama_server(program, gguf, "smollm2-embed", root / "embed.log", "--embeddings", "--pooling", "mean") as embed,
    ):
        trial = trial_in(root / "trial", cache)
        keyed = trial_in(root / "keyed", None)
        try:
            trial.file.write_text(STACK.format(llama=llama, embed=embed, port=trial.port))
            trial.run("up", trial.stack, "--yes")
            keyed.file.write_text(KEYED.format(llama=llama, port=keyed.port))
            keyed.run("apply", keyed.stack, "--yes")
            key = keyed.run("keys", "new", "--scope", "inference", "--name", "client").stdout.strip()
            yield Serving(trial, llama, embed, keyed.url, key)
        finally:
            try:
                keyed.close()
            finally:
                trial.close()


@contextmanager
def llama_server(program: Path, gguf: Path, alias: str, log: Path, *options: str) -> Iterator[str]:
    """Run llama.cpp's own server with one model; yield its URL."""
    port = free_port()
    argv = [str(program), "--model", str(gguf), "--alias", alias, "--host", "127.0.0.1", "--port", str(port)]
    # With a cached beginning the same prompt is computed in other pieces, and may be answered otherwise.
    # Of several threads each waits for the slowest: beside other programs one is quicker.
    argv += ["--no-webui", "--no-cache-prompt", "--threads", "1", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        poll(lambda: process.poll() is not None or _is_healthy(url), START_S)
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
