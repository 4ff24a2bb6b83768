"""I/O: engines that really serve, started by the shim as a unit is, with the key that the gateway sends."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.engines import EngineError, Launch, launch, upstream_model
from orchestrator.engines.find import find_program
from orchestrator.engines.probe import is_alive, probe
from orchestrator.readiness import client
from orchestrator.transport.local import LocalTransport
from schemas.unit import EngineSpec, ModelSpec
from tests.fakes.upstream import FakeUpstream, refuses
from tests.orchestrator.node.harness import Shim
from tests.ports import free_port

TOKEN = "canary-token"
READY_S = 180.0


def spec(engine: Any, **args: Any) -> EngineSpec:
    model = ModelSpec(name="smol", source="path:/somewhere")
    return EngineSpec(node="here", service="chat", replica=0, engine=engine, model=model, max_batch=2, args=args)


@pytest.fixture
def shim(tmp_path: Path) -> Any:
    shim = Shim(tmp_path / "state")
    yield shim
    shim.clean_up()


@asynccontextmanager
async def running(shim: Shim, wanted: EngineSpec, found: Launch, port: int) -> AsyncIterator[tuple[Any, str]]:
    """Start an engine as a unit and wait until it says that its model is loaded."""
    unit = f"{wanted.slot}@0000000000000000"
    answer = await asyncio.to_thread(shim.start, unit, *found.argv, env=dict(found.env))
    assert answer["ok"], answer
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
    async with client() as http:
        while not await is_alive(http, wanted, url, TOKEN):
            seen = await asyncio.to_thread(shim.unit, unit)
            assert seen["alive"], seen["log_tail"]
            assert time.monotonic() < deadline, shim.log(unit)
            await asyncio.sleep(0.2)
        yield http, url
    await asyncio.to_thread(shim.stop, unit)


async def ask(http: httpx.AsyncClient, url: str, model: str, headers: Mapping[str, str]) -> httpx.Response:
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
    return await http.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120)


@pytest.mark.slow
async def test_llama_server_serves_the_original_with_a_key(
    shim: Shim, llama_server: Path, quickstart_gguf: Path
) -> None:
    wanted, port = spec("llama-server", program=str(llama_server)), free_port()
    program = await find_program(LocalTransport("here"), sys.executable, wanted)
    found = launch(wanted, program=program, host="127.0.0.1", port=port, model_path=str(quickstart_gguf), token=TOKEN)

    async with running(shim, wanted, found, port) as (http, url):
        assert await probe(http, wanted, url, TOKEN) is None
        refused = await probe(http, wanted, url, "another")
        assert refused is not None
        assert refused.startswith("HTTP 401")
        answer = await ask(http, url, upstream_model(wanted), {"authorization": f"Bearer {TOKEN}"})
        assert answer.json()["usage"]["completion_tokens"] > 0
        assert answer.json()["model"] == "smol"


@pytest.mark.slow
async def test_stock_mlx_lm_server_serves_the_converted_model(shim: Shim, quickstart_model_dir: Path) -> None:
    wanted, port = spec("mlx-lm-server"), free_port()
    program = await find_program(LocalTransport("here"), sys.executable, wanted)
    found = launch(
        wanted, program=program, host="127.0.0.1", port=port, model_path=str(quickstart_model_dir), token=TOKEN
    )

    async with running(shim, wanted, found, port) as (http, url):
        assert await probe(http, wanted, url, None) is None
        answer = await ask(http, url, upstream_model(wanted), {})
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]


async def test_program_that_is_missing_is_named_with_what_to_do() -> None:
    here = LocalTransport("mono512")
    with pytest.raises(EngineError, match=r"vllm is not on mono512: install vLLM there"):
        await find_program(here, sys.executable, spec("vllm"))
    with pytest.raises(EngineError, match=r"/no/such is not on mono512"):
        await find_program(here, sys.executable, spec("llama-server", program="/no/such"))
    assert await find_program(here, sys.executable, spec("command", command="sh -c {port}")) in (
        "/bin/sh",
        "/usr/bin/sh",
    )


async def test_engine_that_answers_without_a_token_is_not_ready() -> None:
    wanted = spec("vllm")
    empty = {"choices": [{"message": {"role": "assistant", "content": ""}}], "usage": {"completion_tokens": 0}}
    for body, reason in (
        (empty, "it answered without a token"),
        ({"hello": 1}, "it did not answer as OpenAI's API does"),
    ):
        async with FakeUpstream(refuses(200, body)) as fake, client() as http:
            found = await probe(http, wanted, fake.url, TOKEN)
            assert found is not None
            assert found.startswith(reason)
    async with client() as http:
        gone = await probe(http, wanted, f"http://127.0.0.1:{free_port()}", TOKEN)
        assert gone is not None
        assert gone.startswith("ConnectError")
        assert not await is_alive(http, wanted, f"http://127.0.0.1:{free_port()}", TOKEN)
