"""Requests that arrive while all that could answer them is being swapped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway import attempt, holds
from runtime.gateway.routing import build
from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses
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

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
async def swapped(tmp_path: Path) -> AsyncIterator[tuple[LocalGateway, FakeUpstream]]:
    """A gateway whose only service is being replaced, and the successor, which nobody knows of yet."""
    async with FakeUpstream() as successor, local_gateway(tmp_path, service_document("main")) as gateway:
        await gateway.publish(instance("main", "http://127.0.0.1:9", "replacing"))
        yield gateway, successor


Swapped = tuple[LocalGateway, FakeUpstream]


async def ask(gateway: LocalGateway, body: dict[str, Any]) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json=body)


def held(gateway: LocalGateway) -> int:
    return sum(gateway.gateway.services.holds.held.values())


async def test_requests_wait_for_the_successor_and_are_answered_by_it(swapped: Swapped) -> None:
    gateway, successor = swapped
    asking = [asyncio.create_task(ask(gateway, body)) for body in (CHAT, STREAM) * 10]
    await until(lambda: held(gateway) == 20)
    report = await gateway.config()
    assert report["held"] == {"chat": 20}
    assert [endpoint["state"] for endpoint in report["endpoints"]] == ["replacing"]
    async with gateway.client() as client:
        assert 'orchestrate_held_requests{role="chat"} 20.0' in (await client.get("/metrics")).text
    await gateway.publish(instance("main", successor.url))
    for answer in await asyncio.gather(*asking):
        assert answer.status_code == 200
        assert answer.headers["x-orchestrate-endpoint"] == "main"
        assert answer.headers["x-orchestrate-attempts"] == "1"
    assert len(successor.seen) == 20
    assert held(gateway) == 0


async def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    is_asking, answered = True, 0

    async def load(gateway: LocalGateway, body: dict[str, Any]) -> None:
        nonlocal answered
        async with gateway.client() as client:
            while is_asking:
                answer = await client.post(CHAT_PATH, json=body)
                assert answer.status_code == 200, answer.text
                if body is STREAM:
                    assert words_of(answer.text) == ["w0", "w1", "w2"]
                    assert answer.text.endswith("data: [DONE]\n\n")
                answered += 1

    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(local_gateway(tmp_path, service_document("main")))
        running = await stack.enter_async_context(FakeUpstream(answers(pause_s=0.002)))
        await gateway.publish(instance("main", running.url))
        async with asyncio.TaskGroup() as tasks:
            for body in (CHAT, STREAM) * 4:
                tasks.create_task(load(gateway, body))
            for _ in range(6):
                before = answered
                await until(lambda before=before: answered > before + 10)
                await gateway.publish(instance("main", running.url, "replacing"))
                await until(lambda: gateway.in_flight == 0, what="drained")
                await running.stop()
                await until(lambda: held(gateway) == 8, what="everybody waits")
                running = await stack.enter_async_context(FakeUpstream(answers(pause_s=0.002)))
                await gateway.publish(instance("main", running.url))
            is_asking = False
    assert answered > 60


async def test_all_who_waited_are_answered_although_the_successor_takes_few_at_once(swapped: Swapped) -> None:
    gateway, successor = swapped
    places = 2
    good, refuse = answers(pause_s=0.05), refuses(503, {"error": {"message": "queue is full"}}, retry_after="0")

    async def behave(one: Exchange) -> None:
        nonlocal places
        if not places:
            await refuse(one)
            return
        places -= 1
        try:
            await good(one)
        finally:
            places += 1

    successor.behave = behave
    asking = [asyncio.create_task(ask(gateway, CHAT)) for _ in range(12)]
    await until(lambda: held(gateway) == 12)
    await gateway.publish(instance("main", successor.url))
    assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 12


async def test_who_was_held_waits_in_line_also_where_the_files_allow_no_line(tmp_path: Path) -> None:
    limits = {"max_in_flight": 1, "queue": 0}
    gate = asyncio.Event()

    async def behave(one: Exchange) -> None:
        await gate.wait()
        await answers()(one)

    document = service_document("main", chat={"limits": limits})
    async with FakeUpstream(behave) as successor, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("main", "http://127.0.0.1:9", "replacing"))
        asking = [asyncio.create_task(ask(gateway, CHAT)) for _ in range(4)]
        await until(lambda: held(gateway) == 4)
        await gateway.publish(instance("main", successor.url))
        await until(lambda: gateway.gateway.services.queues.depths == {"chat": 3}, what="three in line")
        assert held(gateway) == 0, "nobody looks again and again"
        refused = await ask(gateway, CHAT)
        assert refused.status_code == 503, "who comes later does not wait"
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 4
        assert len(successor.seen) == 4


async def test_a_stream_that_waits_gets_comments(swapped: Swapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "HOLD_S", 0.1)
    monkeypatch.setattr(attempt, "COMMENT_S", 0.1)
    gateway, successor = swapped
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_text()
        assert await anext(pieces) == ": keep-alive\n\n"
        assert await anext(pieces) == ": keep-alive\n\n"
        await gateway.publish(instance("main", successor.url))
        text = "".join([piece async for piece in pieces])
    assert words_of(text) == ["w0", "w1", "w2"]
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["json", "stream"])
async def test_a_client_that_leaves_frees_its_place(swapped: Swapped, body: dict[str, Any]) -> None:
    gateway, successor = swapped
    asking = asyncio.create_task(ask(gateway, body))
    await until(lambda: held(gateway) == 1)
    asking.cancel()
    await until(lambda: held(gateway) == 0)
    await gateway.publish(instance("main", successor.url))
    assert (await ask(gateway, CHAT)).status_code == 200
    assert len(successor.seen) == 1, "nobody asks for a client that left"


@pytest.mark.parametrize(("limit", "value"), [("MOST_HELD", 3), ("MOST_HELD_BYTES", 200)])
async def test_only_so_many_are_held(swapped: Swapped, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    # Each body has 60 bytes.
    monkeypatch.setattr(holds, limit, value)
    gateway, successor = swapped
    asking = [asyncio.create_task(ask(gateway, CHAT)) for _ in range(3)]
    await until(lambda: held(gateway) == 3)
    refused = await ask(gateway, CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_endpoint_available")
    assert int(refused.headers["retry-after"]) >= 1
    await gateway.publish(instance("main", successor.url))
    assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 3


async def test_the_limit_of_all_attempts_ends_the_wait(tmp_path: Path) -> None:
    document = service_document("main", chat={"timeouts": {"total_s": 0.3}})
    async with local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("main", "http://127.0.0.1:9", "replacing"))
        answer = await ask(gateway, CHAT)
        assert answer.status_code == 503
        assert "main: replacing" in answer.json()["error"]["message"]
        assert held(gateway) == 0


async def test_nobody_waits_longer_than_a_successor_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the orchestrator was killed in the middle of a swap."""
    monkeypatch.setattr(build, "SWAP_S", 0.5)
    document = service_document("main")
    document["services"]["main"] |= {"drain_s": 0.1, "ready_timeout_s": 0.5}
    async with FakeUpstream() as fake, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("main", "http://127.0.0.1:9", "replacing"))
        assert "main: replacing" in (await ask(gateway, CHAT)).json()["error"]["message"]
        await gateway.reload({**document, "aliases": {"other": ["chat"]}})
        assert (await ask(gateway, CHAT)).status_code == 503  # and not from the beginning once more
        await gateway.publish(instance("main", fake.url))
        assert (await ask(gateway, CHAT)).status_code == 200


async def test_a_successor_that_never_comes_ends_the_wait_at_once(swapped: Swapped) -> None:
    gateway, _ = swapped
    asking = asyncio.create_task(ask(gateway, CHAT))
    await until(lambda: held(gateway) == 1)
    await gateway.publish()
    answer = await asking
    assert answer.status_code == 503
    assert "main: not running" in answer.json()["error"]["message"]


async def test_a_name_that_goes_while_it_is_waited_for_is_404(swapped: Swapped) -> None:
    gateway, _ = swapped
    await gateway.reload({**gateway.document, "aliases": {"short": ["chat"]}})
    asking = asyncio.create_task(ask(gateway, {**CHAT, "model": "short"}))
    await until(lambda: held(gateway) == 1)
    await gateway.reload(service_document("main"))
    assert (await asking).status_code == 404


async def test_an_edit_that_changes_nothing_here_leaves_them_waiting(swapped: Swapped) -> None:
    gateway, successor = swapped
    asking = asyncio.create_task(ask(gateway, CHAT))
    await until(lambda: held(gateway) == 1)
    for number in range(5):
        await gateway.reload({**gateway.document, "aliases": {f"edit-{number}": ["chat"]}})
    assert held(gateway) == 1
    await gateway.publish(instance("main", successor.url))
    assert (await asking).status_code == 200


async def test_nobody_waits_while_another_rung_can_answer(tmp_path: Path) -> None:
    document = service_document("main", "second", extra=("spare",), chat={"fallback": {"local": "spare"}})
    gone = instance("main", "http://127.0.0.1:9", "replacing")
    async with FakeUpstream() as fake, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(gone, instance("second", fake.url))
        assert (await ask(gateway, CHAT)).headers["x-orchestrate-endpoint"] == "second"
        await gateway.publish(gone, instance("spare", fake.url))
        answer = await ask(gateway, CHAT)
        assert answer.headers["x-orchestrate-endpoint"] == answer.headers["x-orchestrate-fallback"] == "spare"
        # What fails is tried first, and then the request waits for what is on its way.
        fake.behave = refuses(500)
        asking = asyncio.create_task(ask(gateway, CHAT))
        await until(lambda: held(gateway) == 1)
        fake.behave = answers()
        await gateway.publish(instance("main", fake.url))
        assert (await asking).headers["x-orchestrate-endpoint"] == "main"


async def test_a_table_that_comes_together_with_the_end_of_the_wait_is_seen() -> None:
    held = holds.Holds()
    mark = held.mark()
    loop = asyncio.get_running_loop()

    def busy() -> None:
        time.sleep(0.1)  # the time is over in the turn in which the table comes
        loop.call_soon(held.wake)

    loop.call_later(0.01, busy)
    assert await held.wait(mark, 0.05) is True
    assert await held.wait(held.mark(), 0.01) is False
