"""I/O: gateways for tests: one inside the test's loop on a real socket, and one as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from sanic import Sanic

from runtime.gateway.assembly import Gateway, assemble
from runtime.gateway.reload import Sources
from runtime.gateway.routing.breaker import Closed
from runtime.gateway.server import accept, listen
from schemas.stack import Stack
from tests.fakes.upstream import FakeUpstream
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
DEADLINE_S = 120.0
CONNECT_S = 60.0
"""How long a gateway of a test may take to a fake: the 2 s of real ones are short for a machine with other work."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Knows no authorities: reading them takes a client longer than all it asks for here, and keeps the loop waiting."""

Sanic.test_mode = True  # several applications in one process


def stack_document(endpoints: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Return a stack with helpers at the given URLs, one per priority in their order, in the role `chat`."""
    role = {
        "endpoints": {
            name: {"helper": name, "model": f"model-{name}", "priority": index + 1}
            for index, name in enumerate(endpoints)
        }
    }
    return {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "helpers": {name: {"url": url, "models": {f"model-{name}": {}}} for name, url in endpoints.items()},
        "roles": {"chat": role | more.pop("chat", {})},
        "gateway": {"node": "here"} | more.pop("gateway", {}),
        **more,
    }


def service_document(*services: str, **more: Any) -> dict[str, Any]:
    """Return a stack with services in the role `chat`, one per priority in their order.

    Each has a model `model-NAME`. `extra` names services that are in no role.
    """
    endpoints = {name: {"service": name, "priority": index + 1} for index, name in enumerate(services)}
    return {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "models": {f"model-{name}": {"source": f"path:/models/{name}"} for name in (*services, *more.get("extra", ()))},
        "services": {
            name: {"model": f"model-{name}", "nodes": ["here"]} for name in (*services, *more.pop("extra", ()))
        },
        "roles": {"chat": {"endpoints": endpoints} | more.pop("chat", {})} | more.pop("roles", {}),
        "gateway": {"node": "here"},
        **more,
    }


def instance(service: str, url: str, state: str = "ready", replica: int = 0, **more: str) -> dict[str, str]:
    """Return an entry of routes.json for a service of `service_document`."""
    return {
        "unit": f"{service}-{replica}.0@{abs(hash((service, url))) % 16**12:012x}",
        "node": "here",
        "service": service,
        "model": f"model-{service}",
        "url": url,
        "state": state,
        **more,
    }


def patient(document: dict[str, Any]) -> dict[str, Any]:
    """Return a stack whose roles give their endpoints time to be reached, where it does not say how much."""
    roles = {
        name: {**role, "timeouts": {"connect_s": CONNECT_S, **role.get("timeouts", {})}}
        for name, role in document.get("roles", {}).items()
    }
    return {**document, "roles": roles}


def client_of(url: str) -> httpx.AsyncClient:
    """Return a client of a gateway."""
    return httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False, verify=NO_TLS)


async def until(condition: Callable[[], Any], *, within_s: float = DEADLINE_S, what: str = "condition") -> Any:
    """Poll a condition, plain or awaitable, until it is true; fail at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.005)


class LocalGateway:
    """A gateway in the test's own loop: its state can be looked at."""

    def __init__(self, document: dict[str, Any], *, asks_servers: bool = False) -> None:
        """With `asks_servers` the endpoints' servers are asked about their models, as they always are in a process."""
        self.asks_servers = asks_servers
        self.document = document
        self.gateway: Gateway
        self.url = ""
        self.host = "127.0.0.1"
        self.token: str | None = "admin-token"
        self._routes: Path
        self._generation = 0
        self._server: Any = None

    def compose(self, conf: Path, stack: str, overrides: Sequence[str]) -> Stack:
        return Stack.model_validate_json(json.dumps(patient(self.document)))

    async def start(self, tmp_path: Path) -> None:
        self._routes = tmp_path / "routes.json"
        sources = Sources(tmp_path, "lab", self._routes, "worker-token", bind=self.host, admin_token=self.token)
        self.gateway = assemble(sources, self.compose, asks_servers=self.asks_servers)
        await self.reload()
        sock = listen(self.host, 0)
        self.port = sock.getsockname()[1]
        self.url = f"http://{self.host}:{self.port}"
        self._server = await accept(self.gateway.app, sock)

    async def reload(self, document: dict[str, Any] | None = None) -> None:
        self.document = document or self.document
        await self.gateway.services.reloader.reload()

    async def publish(self, *instances: dict[str, str]) -> None:
        """Write routes.json as the orchestrator does, and read it at once."""
        self._generation += 1
        document = {"stack": "lab", "generation": self._generation, "instances": instances}
        fresh = self._routes.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.replace(self._routes)
        await self.reload()

    async def config(self) -> dict[str, Any]:
        async with self.client() as client:
            found: dict[str, Any] = (await client.get("/admin/config")).json()
            return found

    async def stop(self) -> None:
        self._server.close()
        for connection in list(self._server.connections):
            connection.abort()
        self.gateway.close()
        Sanic.unregister_app(self.gateway.app)  # every start looks through those that are
        await asyncio.sleep(0)

    @property
    def in_flight(self) -> int:
        return sum(standing.in_flight for standing in self.gateway.services.pool.standings.values())

    def standing(self, endpoint: str) -> Any:
        """Return what the pool remembers of the endpoint with the model `model-<endpoint>`."""
        standings = self.gateway.services.pool.standings
        return next(standing for identity, standing in standings.items() if identity.model == f"model-{endpoint}")

    def counted(self, endpoint: str) -> tuple[int, int]:
        """Return the generation of an endpoint's breaker, which is closed, and how many failures in a row it counts."""
        state = self.standing(endpoint).breaker
        assert isinstance(state, Closed), state
        return state.generation, state.failures

    def client(self) -> httpx.AsyncClient:
        return client_of(self.url)


@contextlib.asynccontextmanager
async def local_gateway(
    tmp_path: Path, document: dict[str, Any], *, asks_servers: bool = False
) -> AsyncIterator[LocalGateway]:
    """Run a gateway in this loop."""
    gateway = LocalGateway(document, asks_servers=asks_servers)
    await gateway.start(tmp_path)
    try:
        yield gateway
    finally:
        await gateway.stop()


class Conf:
    """A configuration directory and a routes.json in a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root / "conf"
        self.routes_path = root / "state" / "routes.json"
        for group in ("stacks", "nodes", "models", "policies"):
            (self.root / group).mkdir(parents=True)
        self.routes_path.parent.mkdir()

    @property
    def stack_path(self) -> Path:
        return self.root / "stacks" / "lab.yaml"

    def write_stack(self, document: dict[str, Any]) -> None:
        """Write the stack in place, as editors do. JSON is YAML."""
        self.stack_path.write_text("# @package _global_\n" + json.dumps(patient(document), indent=1))

    def write_routes(self, **fields: Any) -> None:
        """Replace routes.json as the orchestrator does."""
        document = {"version": 1, "stack": "lab", "generation": 1, **fields}
        fresh = self.routes_path.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.replace(self.routes_path)


class GatewayProcess:
    """A gateway as a process of its own."""

    def __init__(
        self,
        conf: Conf,
        port: int | None = None,
        *,
        drain_s: float = 30.0,
        bind: str = "127.0.0.1",
        keys: Path | None = None,
        **environ: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = conf.root.parent / f"gateway-{time.monotonic_ns()}.log"
        self._conf = conf
        self._drain_s = drain_s
        self._bind = bind
        self._keys = keys
        self._environ = environ
        self.process: asyncio.subprocess.Process

    async def start(self, *, is_awaited: bool = True) -> Self:
        arguments = {
            "--conf": self._conf.root,
            "--stack": "lab",
            "--routes": self._conf.routes_path,
            "--port": self.port,
            "--drain-s": self._drain_s,
            "--bind": self._bind,
            **({} if self._keys is None else {"--keys": self._keys}),
        }
        with self.log_path.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "runtime.gateway"),
                *(str(part) for pair in arguments.items() for part in pair),
                cwd=ROOT,
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
            )
        if is_awaited:
            await until(lambda: "listening:" in self.log, what="the gateway listens")
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def client(self) -> httpx.AsyncClient:
        return client_of(self.url)

    async def config(self) -> dict[str, Any]:
        async with self.client() as client:
            found: dict[str, Any] = (await client.get("/admin/config")).json()
            return found

    async def is_current(self) -> bool:
        """Tell whether the newest files are those that it serves."""
        return bool((await self.config())["is_current"])

    async def is_behind(self) -> bool:
        return not await self.is_current()

    async def ask(self, model: str) -> int:
        """Return the status of the answer to a chat request."""
        async with self.client() as client:
            return (await client.post("/v1/chat/completions", json={**CHAT, "model": model})).status_code

    async def answers_soon(self, model: str, status: int = 200) -> float:
        """Wait until a model is answered with a status; return how long that took, in seconds."""
        started = time.perf_counter()
        while await self.ask(model) != status:
            assert time.perf_counter() - started < DEADLINE_S, f"{model} is not answered with {status}"
            await asyncio.sleep(0.01)
        return time.perf_counter() - started

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


Running = tuple[Conf, GatewayProcess, FakeUpstream, dict[str, Any]]
"""A gateway process before one good helper, and the document of its stack."""


@contextlib.asynccontextmanager
async def gateway_process(conf: Conf, **options: Any) -> AsyncIterator[GatewayProcess]:
    """Run a gateway as a process; it is killed at the end."""
    gateway = GatewayProcess(conf, **options)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def words_of(text: str) -> list[str]:
    """Return the generated words in the text of an event stream."""
    documents = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    deltas = [choice.get("delta", {}) for document in documents for choice in document.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas).split()
