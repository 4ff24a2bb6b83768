"""Real inference servers as helpers: found out, and asked a question through a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from orchestrator.helpers.compare import describe, mismatches
from orchestrator.helpers.observe import look
from orchestrator.observed import HelperSeen
from orchestrator.readiness import client
from schemas.stack import Helper
from tests.ports import free_port
from tests.runtime.gateway.harness import local_gateway, until

pytestmark = [pytest.mark.slow]
START_S = 300.0


@contextlib.asynccontextmanager
async def running(argv: Sequence[str], **environ: str) -> AsyncIterator[None]:
    """Run a program while the context lasts."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environ},
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def seen_when_up(helper: Helper) -> HelperSeen:
    async with client() as http:

        async def is_seen() -> HelperSeen | None:
            seen = await look(http, "box", helper, {})
            return seen if isinstance(seen, HelperSeen) else None

        return await until(is_seen, within_s=START_S, what="the server answers")


async def asked(tmp_path: Path, url: str, model: str, api: str = "openai") -> str:
    """Return the answer that a gateway gets from the helper."""
    document = {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "helpers": {"box": {"url": url, "api": api, "models": {model: {}}}},
        "roles": {
            "chat": {
                "endpoints": {"box": {"helper": "box", "model": model}},
                "timeouts": {"first_token_s": 300, "total_s": 300, "idle_s": 300},
            }
        },
        "gateway": {"node": "here"},
    }
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    async with local_gateway(tmp_path, document) as gateway, httpx.AsyncClient(timeout=START_S) as http:
        answer = await http.post(f"{gateway.url}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


async def test_stock_mlx_lm_server_is_known_and_answers(quickstart_model_dir, tmp_path):
    port = free_port()
    argv = [sys.executable, "-m", "mlx_lm.server", "--model", str(quickstart_model_dir), "--port", str(port)]
    helper = Helper.model_validate({"url": f"http://127.0.0.1:{port}", "api": "mlx-lm-server", "models": {"smol": {}}})
    async with running(argv, HF_HOME=str(tmp_path / "hub")):
        seen = await seen_when_up(helper)
        assert (seen.engine, seen.present) == ("mlx_lm.server", {"default_model"})
        (tmp_path / "hub" / "hub").mkdir(parents=True)  # its list of models needs a hub cache, be it empty
        seen = await seen_when_up(helper)
        assert str(quickstart_model_dir.resolve()) in seen.present
        assert mismatches("box", helper, seen) == ()
        assert describe("box", seen) == "box: mlx_lm.server, 2 models"
        assert "Paris" in await asked(tmp_path, helper.url, "smol", "mlx-lm-server")


async def test_a_real_llama_server_is_known_and_answers(llama_server, quickstart_gguf, tmp_path):
    port = free_port()
    argv = [str(llama_server), "--model", str(quickstart_gguf), "--alias", "smol", "--ctx-size", "2048"]
    helper = Helper.model_validate({"url": f"http://127.0.0.1:{port}", "models": {"smol": {}}})
    async with running([*argv, "--host", "127.0.0.1", "--port", str(port)]):
        seen = await seen_when_up(helper)
        assert seen.engine == "llama.cpp"
        assert "smol" in seen.present & seen.loaded
        assert 0 < seen.context["smol"] <= 2048
        assert mismatches("box", helper, seen) == ()
        assert await asked(tmp_path, helper.url, "smol")
