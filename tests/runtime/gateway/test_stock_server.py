"""A real stock mlx_lm.server behind the gateway: it answers, and no request that is let through ends it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.runtime.gateway.harness import LocalGateway, instance, local_gateway, service_document, until, words_of

pytestmark = pytest.mark.slow

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
READY_S = 180.0

HOSTILE: list[tuple[str, dict[str, Any]]] = [
    (TEXT_PATH, {"prompt": ["a", "b"]}),
    (TEXT_PATH, {"prompt": ""}),
    (TEXT_PATH, {"prompt": [1, 2]}),
    (TEXT_PATH, {"prompt": "a", "stop": [1]}),
    (TEXT_PATH, {"prompt": "a", "stop": [""]}),
    (CHAT_PATH, {"messages": QUESTION, "logit_bias": {"999999999": 1}}),
    (CHAT_PATH, {"messages": QUESTION, "top_k": 1_000_000}),
    (CHAT_PATH, {"messages": QUESTION, "top_k": 1000, "temperature": 1}),
    (CHAT_PATH, {"messages": QUESTION, "seed": 2**63 - 1}),
    (CHAT_PATH, {"messages": QUESTION, "top_p": 0, "min_p": 1}),
    (CHAT_PATH, {"messages": QUESTION, "repetition_penalty": 0, "presence_penalty": 2}),
    (CHAT_PATH, {"messages": QUESTION, "stop": ["x" * 5000]}),
    (CHAT_PATH, {"messages": QUESTION, "tools": [{"a": 1}]}),
    (CHAT_PATH, {"messages": QUESTION, "stream": True, "stream_options": {}}),
    (CHAT_PATH, {"messages": [{"role": "zork", "content": "x"}]}),
    (CHAT_PATH, {"messages": [{"role": "user", "content": "\x00\uffff"}]}),
    (CHAT_PATH, {"messages": [{"role": "user", "content": "\ud800"}]}),
    (CHAT_PATH, {"messages": [{"role": "user", "content": ""}]}),
    (CHAT_PATH, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]}),
]


@pytest.fixture
async def stock(tmp_path: Path, quickstart_model_dir: Path) -> AsyncIterator[LocalGateway]:
    """A gateway before a stock server with the quickstart model."""
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rsplit(":", 1)[1]
    with (tmp_path / "stock.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mlx_lm.server", "--host", "127.0.0.1", "--port", port),
            *("--model", str(quickstart_model_dir)),
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

            async def is_up() -> bool:
                assert process.returncode is None, (tmp_path / "stock.log").read_text()
                with suppress(httpx.HTTPError):
                    return (await client.get("/health")).status_code == 200
                return False

            await until(is_up, within_s=READY_S)
        document = service_document("main", chat={"timeouts": {"first_token_s": READY_S}})
        async with local_gateway(tmp_path, document) as gateway:
            await gateway.publish(instance("main", url, engine="mlx-lm-server", upstream_model="default_model"))
            yield gateway
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_it_answers_and_outlives_every_request_that_it_is_sent(stock: LocalGateway) -> None:
    async with httpx.AsyncClient(base_url=stock.url, timeout=READY_S, trust_env=False) as client:

        async def ask(path: str, **body: Any) -> httpx.Response:
            return await client.post(path, content=json.dumps({"model": "chat", "max_tokens": 8, **body}))

        async def knows_paris() -> bool:
            whole = await ask(CHAT_PATH, messages=QUESTION)
            assert whole.status_code == 200, whole.text
            assert whole.json()["usage"]["completion_tokens"] > 0
            return "Paris" in whole.json()["choices"][0]["message"]["content"]

        assert await knows_paris()
        streamed = await ask(CHAT_PATH, messages=QUESTION, stream=True)
        assert "Paris." in words_of(streamed.text) and streamed.text.endswith("data: [DONE]\n\n")
        text = await ask(TEXT_PATH, prompt="Once upon a")
        assert text.json()["choices"][0]["text"] and text.json()["object"] == "text_completion"
        statuses = []
        for path, body in HOSTILE:
            statuses.append((await ask(path, **{**body, "max_tokens": 2})).status_code)
        assert set(statuses) <= {200, 400}, statuses
        assert statuses[:7] == [200] + [400] * 6
        assert await knows_paris()


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks a city up.", "parameters": SCHEMA}}
EMULATED: list[tuple[str, dict[str, Any]]] = [
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}}),
    ("tool_choice", {"tools": [TOOL], "tool_choice": "required"}),
]


async def test_what_it_passes_over_is_done_for_it_or_said_not_to_be(stock: LocalGateway) -> None:
    async with httpx.AsyncClient(base_url=stock.url, timeout=READY_S, trust_env=False) as client:
        several = await client.post(
            CHAT_PATH, json={"model": "chat", "messages": QUESTION, "max_tokens": 12, "n": 2, "temperature": 0}
        )
        assert several.headers["x-orchestrate-emulated"] == "n"
        assert [choice["index"] for choice in several.json()["choices"]] == [0, 1]
        assert all("Paris" in choice["message"]["content"] for choice in several.json()["choices"])
        for param, more in EMULATED:
            asked = {"model": "chat", "messages": QUESTION, "max_tokens": 24, "temperature": 0, **more}
            answer = await client.post(CHAT_PATH, json=asked)
            # A model this small may or may not do what it is told.
            document = answer.json()
            if answer.status_code == 422:
                assert (document["error"]["code"], document["error"]["param"]) == ("answer_not_in_form", param)
                continue
            assert answer.status_code == 200 and answer.headers["x-orchestrate-emulated"] == param, answer.text
            (choice,) = document["choices"]
            if choice["finish_reason"] == "length":
                continue
            if param == "tool_choice":
                (call,) = choice["message"]["tool_calls"]
                text, name = call["function"]["arguments"], call["function"]["name"]
                assert (choice["finish_reason"], name) == ("tool_calls", "look_up")
            else:
                text = choice["message"]["content"]
            assert isinstance(json.loads(text)["city"], str)
