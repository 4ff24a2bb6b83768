"""I/O: fake inference servers that say of themselves what the real ones say: real HTTP on a real socket.

In a test's own loop: `async with FakeEngine(vllm("model")) as fake`. As a program, to be killed:
`python -m tests.fakes.engines ollama --port N --model NAME`; `--hold-first-pull` lets its first pull stand still. The
shapes are those of the engines' documentation, cited in `orchestrator/helpers/dialects`; what they answer to chat is
`tests.fakes.upstream`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.fakes.upstream import Exchange, FakeUpstream, answers

Documents = dict[str, Any]
"""What a server says to GET, by path."""

PULLED = "sha256:" + "5" * 64
LICENCE = "sha256:" + "a" * 64


def openai_list(*models: str, owner: str | None, **more: Any) -> Documents:
    """Return a model list of OpenAI's shape."""
    owned = {} if owner is None else {"owned_by": owner}
    return {"object": "list", "data": [{"id": m, "object": "model", "created": 1, **owned, **more} for m in models]}


def vllm(*models: str) -> Documents:
    listed = openai_list(*models, owner="vllm", root="/models/m", parent=None, max_model_len=32768, permission=[])
    return {"/v1/models": listed, "/version": {"version": "0.11.0"}, "/health": ""}


def llama_cpp(model: str) -> Documents:
    meta = {"vocab_type": 1, "n_vocab": 49152, "n_ctx_train": 8192, "n_embd": 576, "n_params": 134515008, "size": 95000}
    listed = openai_list(model, owner="llamacpp", meta=meta)
    props = {
        "default_generation_settings": {"id": 0, "n_ctx": 4096, "is_processing": False},
        "total_slots": 1,
        "model_path": f"/models/{model}.gguf",
        "chat_template": "...",
        "build_info": "b6700-1deee0f8",
    }
    return {"/v1/models": {**listed, "models": [{"name": model}]}, "/props": props, "/health": {"status": "ok"}}


def llama_cpp_router(**states: str) -> Documents:
    rows = [
        {
            "id": name,
            "aliases": [f"{name}-alias"],
            "object": "model",
            "owned_by": "llamacpp",
            "status": {"value": state},
        }
        for name, state in states.items()
    ]
    return {"/v1/models": {"object": "list", "data": rows}, "/health": {"status": "ok"}}


def tei(model: str) -> Documents:
    return {
        "/info": {
            "model_id": model,
            "model_sha": None,
            "model_dtype": "float16",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": 512,
            "max_input_length": 512,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_client_batch_size": 32,
            "auto_truncate": False,
            "tokenization_workers": 4,
            "version": "1.7.1",
            "sha": None,
            "docker_label": None,
        }
    }


def infinity(*models: str) -> Documents:
    stats = {"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0, "batch_size": 32}
    listed = openai_list(*models, owner="infinity", stats=stats, backend="torch", capabilities=["embed"])
    return {"/models": listed, "/health": {"unix": 1.0}}


def lm_studio(**states: str) -> Documents:
    """LM Studio 0.3: `states` are `loaded` or `not-loaded` by model."""
    rows = [
        {
            "id": name,
            "object": "model",
            "type": "llm",
            "publisher": "community",
            "arch": "llama",
            "compatibility_type": "gguf",
            "quantization": "Q4_K_M",
            "state": state,
            "max_context_length": 131072,
            **({"loaded_context_length": 8192} if state == "loaded" else {}),
        }
        for name, state in states.items()
    ]
    return {
        "/v1/models": openai_list(*states, owner="organization_owner"),
        "/api/v0/models": {"object": "list", "data": rows},
    }


def lm_studio_v1(**instances: int) -> Documents:
    """LM Studio 0.4: how many instances of each model are loaded."""
    rows = [
        {
            "type": "llm",
            "key": name,
            "size_bytes": 2_000_000,
            "max_context_length": 131072,
            "loaded_instances": [
                {"id": name if n == 0 else f"{name}:{n + 1}", "config": {"context_length": 4096}} for n in range(loaded)
            ],
        }
        for name, loaded in instances.items()
    ]
    return {"/v1/models": openai_list(*instances, owner="organization_owner"), "/api/v1/models": {"models": rows}}


def mlx_lm(*models: str) -> Documents:
    return {"/v1/models": openai_list(*models, owner=None), "/health": {"status": "ok"}}


def local_ai(*models: str, loaded: str | None = None) -> Documents:
    running = [] if loaded is None else [{"id": loaded, "backend": "llama-cpp", "size_vram": 700}]
    listed = {"object": "list", "data": [{"id": model, "object": "model"} for model in models]}
    return {
        "/v1/models": listed,
        "/system": {"backends": ["llama-cpp"], "loaded_models": running},
        "/version": {"version": "v3.5.0 (abc)"},
    }


def ollama(*models: str, loaded: tuple[str, ...] = (), version: str = "0.12.3") -> Documents:
    """Ollama with models by their full names, as `/api/tags` lists them."""

    def row(name: str) -> dict[str, Any]:
        details = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
        return {"name": name, "model": name, "size": 1000, "digest": "d" * 64, "details": details}

    running = [
        {**row(name), "expires_at": "2026-11-22T02:00:00Z", "size_vram": 900, "context_length": 4096} for name in loaded
    ]
    return {
        "/api/version": {"version": version},
        "/api/tags": {"models": [{**row(name), "modified_at": "2026-11-01T00:00:00Z"} for name in models]},
        "/api/ps": {"models": running},
        "/v1/models": openai_list(*models, owner="library") if models else {"object": "list", "data": None},
    }


class FakeEngine(FakeUpstream):
    """A server with one engine's documents. It answers POST to OpenAI's paths as `behave` says."""

    def __init__(self, documents: Documents, *, server: str = "fake", key: str | None = None) -> None:
        super().__init__(self._answer)
        self.documents = documents
        self.server = server
        self.key = key
        self.chat = answers()
        self.questions: list[str] = []
        """The paths that a gateway asked about its models."""

    async def _answer(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if self.key is not None and seen.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.answer(401, {"error": {"message": "invalid key"}})
        elif seen.body:
            await self.post(exchange)
        elif seen.path in self.documents:
            await self.tell(exchange, self.documents[seen.path])
        else:
            await exchange.answer(404, b"404 page not found", content_type="text/plain", server=self.server)

    async def _say(self, exchange: Exchange) -> None:
        seen = exchange.seen
        self.questions.append(seen.path)
        if self.key is not None and seen.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.answer(401, {"error": {"message": "invalid key"}})
        elif seen.body and seen.path in self.documents:
            await self.tell(exchange, self.documents[seen.path].get(seen.document.get("model"), {}))
        elif seen.path in self.documents:
            await self.tell(exchange, self.documents[seen.path])
        else:
            await exchange.answer(404, b"404 page not found", content_type="text/plain", server=self.server)

    async def tell(self, exchange: Exchange, document: Any) -> None:
        if callable(document):
            await document(exchange)
        else:
            await exchange.answer(200, json.dumps(document).encode(), server=self.server)

    async def post(self, exchange: Exchange) -> None:
        await self.chat(exchange)


Step = Mapping[str, Any] | Callable[[Exchange], Any]


class FakeOllama(FakeEngine):
    """An Ollama that can pull. `steps` are the lines of its next pull; a callable among them does anything else."""

    def __init__(self, *models: str, steps: list[Step] | None = None, **more: Any) -> None:
        super().__init__(ollama(*models, **more))
        self.pulled: list[str] = []
        self.steps: list[Step] = steps if steps is not None else good_pull()

    async def post(self, exchange: Exchange) -> None:
        if exchange.seen.path != "/api/pull":
            await self.chat(exchange)
            return
        name = exchange.seen.document["model"]
        self.pulled.append(name)
        await exchange.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for step in self.steps:
            if callable(step):
                await step(exchange)
            else:
                await exchange.chunk(json.dumps(step).encode() + b"\n")
        await exchange.end_stream()
        if self.steps and self.steps[-1] == {"status": "success"}:
            known = [row["name"] for row in self.documents["/api/tags"]["models"]]
            self.documents = ollama(*known, name if ":" in name else f"{name}:latest")


def good_pull(size: int = 1000, steps: int = 4) -> list[Step]:
    """Return the lines of a pull of two layers, the first of `size` bytes in so many steps."""
    layer = {"status": f"pulling {PULLED[7:19]}", "digest": PULLED, "total": size}
    small = {"status": f"pulling {LICENCE[7:19]}", "digest": LICENCE, "total": 260}
    return [
        {"status": "pulling manifest"},
        layer,
        *({**layer, "completed": size * (n + 1) // steps} for n in range(steps)),
        small,
        {**small, "completed": 260},
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]


def held_once(fake: FakeOllama) -> list[Step]:
    """Return the lines of a pull whose first try stands still half way for ever."""

    async def hold(_exchange: Exchange) -> None:
        if len(fake.pulled) == 1:
            await asyncio.Event().wait()

    lines = good_pull()
    return [*lines[:4], hold, *lines[4:]]


def full_disk(size: int = 1000) -> list[Step]:
    """Return the lines of a pull that runs out of disk."""
    write = "write /usr/share/ollama/.ollama/models/blobs/sha256-5555-partial: no space left on device"
    layer = {"status": f"pulling {PULLED[7:19]}", "digest": PULLED, "total": size, "completed": size // 2}
    return [{"status": "pulling manifest"}, layer, {"error": write}]


def unknown_model() -> list[Step]:
    """Return the lines of a pull of a model that the registry does not have."""
    return [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]


ENGINES: dict[str, Callable[[str], FakeEngine]] = {
    "ollama": lambda model: FakeOllama(model) if model else FakeOllama(),
    "vllm": lambda model: FakeEngine(vllm(model)),
    "llama.cpp": lambda model: FakeEngine(llama_cpp(model)),
    "tei": lambda model: FakeEngine(tei(model)),
    "infinity": lambda model: FakeEngine(infinity(model)),
    "lm-studio": lambda model: FakeEngine(lm_studio(**{model: "loaded"})),
    "mlx-lm": lambda model: FakeEngine(mlx_lm(model), server="BaseHTTP/0.6 Python/3.11.7"),
    "local-ai": lambda model: FakeEngine(local_ai(model, loaded=model)),
}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--hold-first-pull", action="store_true")
    arguments = parser.parse_args()

    async def run() -> None:
        fake = ENGINES[arguments.engine](arguments.model)
        if arguments.hold_first_pull and isinstance(fake, FakeOllama):
            fake.steps = held_once(fake)
        await fake.start(arguments.port, arguments.host)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
