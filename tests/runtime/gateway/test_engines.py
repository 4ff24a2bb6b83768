"""Managed engines behind the gateway: their names, their tokens, and the one that must be handled with care."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    FakeUpstream,
    answers,
    event,
    refuses,
    streams,
    word,
)
from tests.runtime.gateway.harness import (
    CHAT,
    STREAM,
    LocalGateway,
    instance,
    local_gateway,
    service_document,
    until,
    words_of,
)

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
STOCK = {"engine": "mlx-lm-server", "upstream_model": "default_model"}


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[tuple[LocalGateway, FakeUpstream]]:
    """A gateway before what it takes for a stock mlx_lm.server."""
    document = service_document("main")
    async with FakeUpstream() as fake, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("main", fake.url, **STOCK))
        yield gateway, fake


Stock = tuple[LocalGateway, FakeUpstream]


async def ask(gateway: LocalGateway, body: dict[str, Any], path: str = CHAT_PATH) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(path, json=body)


async def test_bytes_of_a_request_are_kept_but_for_the_name_of_the_model_and_the_stream(tmp_path: Path) -> None:
    raw = b'{ "messages" : [{"role": "user","content":"h\\u00ef"}],"model":"chat" , "temperature": 0.50}'
    async with FakeUpstream() as fake, local_gateway(tmp_path, service_document("main")) as gateway:
        await gateway.publish(instance("main", fake.url, engine="llama-server", upstream_model="tiny.gguf"))
        async with gateway.client() as client:
            assert (await client.post(CHAT_PATH, content=raw)).status_code == 200
    stream = b'"stream":true,"stream_options":{"include_usage":true},'
    assert fake.seen[0].body == b"{" + stream + raw[1:].replace(b'"model":"chat"', b'"model":"tiny.gguf"')
    assert fake.seen[0].headers["authorization"] == "Bearer worker-token"


async def test_a_stock_server_is_told_no_token_and_always_asked_for_a_stream(stock: Stock) -> None:
    gateway, fake = stock
    answer = await ask(gateway, CHAT)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "w0 w1 w2 "}
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert words_of((await ask(gateway, STREAM)).text) == ["w0", "w1", "w2"]
    for seen in fake.seen:
        assert "authorization" not in seen.headers
        assert seen.headers["accept"] == "text/event-stream"
        assert (seen.document["model"], seen.document["stream"]) == ("default_model", True)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT_PATH, {**CHAT, "logprobs": True}, "logprobs"),
        (CHAT_PATH, {**STREAM, "tool_choice": "required"}, "tool_choice"),
        (CHAT_PATH, {**CHAT, "logit_bias": {"5": 1}}, "logit_bias"),
        (TEXT_PATH, {"model": "chat", "prompt": [1, 2]}, "prompt"),
        (TEXT_PATH, {"model": "chat", "prompt": "a", "stop": [""]}, "stop"),
    ],
)
async def test_what_a_stock_server_cannot_do_is_400_and_never_reaches_it(
    stock: Stock, path: str, body: dict[str, Any], param: str
) -> None:
    gateway, fake = stock
    answer = await ask(gateway, body, path)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert fake.seen == []
    assert (await ask(gateway, CHAT)).status_code == 200


async def test_another_engine_of_the_role_does_what_a_stock_server_cannot(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as careful,
        FakeUpstream() as able,
        local_gateway(tmp_path, service_document("main", "second")) as gateway,
    ):
        await gateway.publish(instance("main", careful.url, **STOCK), instance("second", able.url))
        assert (await ask(gateway, CHAT)).headers["x-orchestrate-endpoint"] == "main"
        answer = await ask(gateway, {**CHAT, "logprobs": True})
        assert answer.headers["x-orchestrate-endpoint"] == "second"
        assert answer.headers["x-orchestrate-attempts"] == "1"
        assert len(careful.seen) == 1
        # While the able one is down, asking again later helps: no 400.
        able.behave = refuses(500)
        answer = await ask(gateway, {**CHAT, "logprobs": True})
        assert answer.status_code == 503
        assert "main: does not take 'logprobs'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "bad",
    [
        streams(ROLE, word(0), then="hang up"),
        streams(ROLE, word(0), then="end"),
        streams(ROLE, word(0), then="silence"),
        streams(ROLE, event({"error": {"message": "engine died", "type": "server_error"}})),
        refuses(404, {"error": "list index out of range"}),
    ],
    ids=["cut", "no finish", "stall", "error event", "engine 404"],
)
async def test_a_whole_answer_that_breaks_off_anywhere_is_made_good_by_another(tmp_path: Path, bad: Any) -> None:
    document = service_document("main", "second", chat={"timeouts": {"idle_s": 2.0}})
    async with FakeUpstream(bad) as first, FakeUpstream() as second, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("main", first.url, **STOCK), instance("second", second.url))
        answer = await ask(gateway, CHAT)
        assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "second")
        assert gateway.standing("main").breaker.failures == 1


async def test_a_client_of_a_whole_answer_that_leaves_ends_the_generation(stock: Stock) -> None:
    gateway, fake = stock
    fake.behave = answers(words=10_000, pause_s=0.01)

    asking = asyncio.create_task(ask(gateway, CHAT))
    await until(lambda: fake.seen and fake.seen[0].is_begun)
    asking.cancel()
    await asyncio.wait_for(fake.seen[0].was_cut.wait(), 60)
    await until(lambda: gateway.in_flight == 0)


async def test_a_stock_server_is_probed_in_its_own_words(stock: Stock) -> None:
    gateway, fake = stock
    fake.behave = refuses(500)
    await gateway.reload(service_document("main", chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1}}))
    assert (await ask(gateway, CHAT)).status_code == 503
    fake.behave = streams(ROLE, word(0), FINISH, DONE)

    def is_probed() -> bool:
        return any(seen.headers["x-request-id"] == "probe" for seen in fake.seen)

    await until(is_probed)
    probe = next(seen for seen in fake.seen if seen.headers["x-request-id"] == "probe")
    assert probe.document["model"] == "default_model"
    assert "authorization" not in probe.headers
