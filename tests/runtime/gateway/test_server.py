"""The life of the process: start, hand-over, drain, and the OpenAI client against all of it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from runtime.gateway.server import _until_accepted, listen
from tests.fakes.upstream import FakeUpstream, answers, refuses
from tests.ports import free_port
from tests.runtime.gateway.harness import (
    CHAT,
    NO_TLS,
    ROOT,
    STREAM,
    Conf,
    GatewayProcess,
    client_of,
    gateway_process,
    stack_document,
    until,
)

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as found:
        yield found


@pytest.fixture
def conf(tmp_path: Path, fake: FakeUpstream) -> Conf:
    found = Conf(tmp_path)
    found.write_stack(stack_document({"a": fake.url}, aliases={"gpt-4o-mini": ["chat"]}))
    return found


async def test_the_openai_client_talks_to_it(conf: Conf, fake: FakeUpstream) -> None:
    async with (
        gateway_process(conf) as gateway,
        httpx.AsyncClient(trust_env=False, verify=NO_TLS) as http,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        messages: Any = CHAT["messages"]
        whole = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert whole.choices[0].message.content == "hello"
        assert whole.usage is not None and whole.usage.completion_tokens == 5
        text = ""
        stream = await client.chat.completions.create(model="chat", messages=messages, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        assert text == "w0 w1 w2 "
        completion = await client.completions.create(model="chat", prompt="once")
        assert completion.choices[0].text == "hello"
        assert [model.id async for model in client.models.list()] == ["chat", "gpt-4o-mini", "model-a"]
        assert (await client.models.retrieve("model-a")).owned_by == "a"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=messages)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="chat", messages=[])
        fake.behave = refuses(500)
        with pytest.raises(openai.InternalServerError) as down:
            await client.chat.completions.create(model="chat", messages=messages)
        assert int(down.value.response.headers["retry-after"]) >= 1
    assert "Traceback" not in gateway.log and "Goin' Fast" not in gateway.log


async def test_it_serves_within_a_second_and_some_of_its_start(conf: Conf) -> None:
    started = time.perf_counter()
    async with gateway_process(conf) as gateway, gateway.client() as client:
        assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 200
        assert time.perf_counter() - started < 60.0, "about a second on an idle machine; tests share theirs"


async def test_answers_of_every_kind_have_no_empty_header(conf: Conf) -> None:
    async with gateway_process(conf) as gateway, gateway.client() as client:
        for answer in (
            await client.post(CHAT_PATH, json=STREAM),
            await client.get("/there/is/no/such"),
            await client.request("TRACE", "/health"),
            await client.get("/metrics"),
        ):
            assert not [name for name, value in answer.headers.items() if not value.strip()], answer.headers


async def test_draining_ends_with_its_time(conf: Conf, fake: FakeUpstream) -> None:
    fake.behave = answers(words=10_000, pause_s=0.05)
    async with gateway_process(conf, drain_s=0.3) as gateway, gateway.client() as client:
        async with client.stream("POST", CHAT_PATH, json=STREAM) as answer:
            pieces = answer.aiter_bytes()  # held: the connection ends with it
            await anext(pieces)
            gateway.terminate()
            assert await asyncio.wait_for(gateway.process.wait(), 60) == 0
        await asyncio.wait_for(fake.seen[0].was_cut.wait(), 60)
    assert "Traceback" not in gateway.log


async def test_an_idle_gateway_ends_at_once(conf: Conf) -> None:
    async with gateway_process(conf) as gateway, gateway.client() as client:
        await client.get("/health")
        gateway.terminate()
        started = time.perf_counter()
        assert await asyncio.wait_for(gateway.process.wait(), 60) == 0
        assert time.perf_counter() - started < 20.0


async def test_a_replacement_takes_over_without_one_refused_request(conf: Conf, fake: FakeUpstream) -> None:
    port = free_port()
    is_asking = True
    statuses: list[int] = []
    failures: list[str] = []

    async def load() -> None:
        while is_asking:
            # A new connection each time: those are what a hand-over could refuse or reset.
            async with client_of(f"http://127.0.0.1:{port}") as client:
                try:
                    answer = await client.post(CHAT_PATH, json=CHAT)
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                else:
                    statuses.append(answer.status_code)

    old = await GatewayProcess(conf, port).start()
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(load())
            for _ in range(2):
                new = await GatewayProcess(conf, port).start()
                old.terminate()
                assert await asyncio.wait_for(old.process.wait(), 60) == 0
                old = new
            count = len(statuses)
            await until(lambda: len(statuses) > count + 20)
            is_asking = False
    finally:
        await old.stop()
    assert failures == []
    assert set(statuses) == {200}


async def test_a_socket_is_not_closed_while_connections_wait_to_be_accepted() -> None:
    with listen("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        waiting = asyncio.create_task(_until_accepted(sock))
        await asyncio.sleep(0)
        assert not waiting.done()
        accepted, _ = sock.accept()
        await asyncio.wait_for(waiting, 60)
        accepted.close()


async def test_a_taken_port_is_an_error_and_no_hang(conf: Conf) -> None:
    stranger = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    gateway = GatewayProcess(conf, stranger.sockets[0].getsockname()[1])
    await gateway.start(is_awaited=False)
    assert await asyncio.wait_for(gateway.process.wait(), 60) == 1
    assert "cannot listen" in gateway.log
    stranger.close()


async def test_a_killed_endpoint_is_503_with_retry_after_at_once(tmp_path: Path) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.upstream",
        "--port",
        str(port),
        "--words",
        "1000",
        "--pause-s",
        "0.01",
        cwd=ROOT,
    )
    conf = Conf(tmp_path)
    conf.write_stack(stack_document({"a": f"http://127.0.0.1:{port}"}))
    try:
        async with gateway_process(conf) as gateway, gateway.client() as client:

            async def is_served() -> bool:
                return (await client.post(CHAT_PATH, json=CHAT)).status_code == 200

            await until(is_served)
            async with client.stream("POST", CHAT_PATH, json=STREAM) as answer:
                pieces = answer.aiter_text()
                await anext(pieces)
                process.send_signal(signal.SIGKILL)
                killed = time.perf_counter()
                text = "".join([piece async for piece in pieces])
                assert time.perf_counter() - killed < 30.0
            assert '"error"' in text and "[DONE]" not in text
            for _ in range(5):
                refused = await client.post(CHAT_PATH, json=CHAT)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.elapsed.total_seconds() < 20.0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
