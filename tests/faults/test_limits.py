"""F17, F18, F23 to F25, F30: more clients than places, clients that leave, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed, Open
from tests.fakes.upstream import DONE, FINISH, ROLE, Exchange, FakeUpstream, answers, refuses, word
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
PATIENCE_S = 120.0


def client_of(gateway: LocalGateway, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S, trust_env=False, limits=limits)


def queued(gateway: LocalGateway) -> int:
    return sum(gateway.gateway.services.queues.depths.values())


class Gate:
    """An endpoint that answers when it is told to, and knows who came in which order."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.order: list[str] = []
        self.most = 0
        self.now = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.order.append(exchange.seen.document.get("user", ""))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.open.wait()
            await answers()(exchange)
        finally:
            self.now -= 1


@pytest.mark.slow
async def test_f24_of_500_at_once_as_many_are_served_as_there_are_slots_and_places(lab: Any) -> None:
    gate = Gate()
    limits = {"max_in_flight": 2, "queue": 64}
    gateway, (fake,) = await lab(gate, chat={"limits": limits, "timeouts": {"queue_s": 600.0}})
    async with client_of(gateway, 600) as client:

        async def ask(number: int) -> httpx.Response:
            return await client.post(CHAT_PATH, json={**CHAT, "user": str(number)})

        # The first 66 come one after another, so that it is known who is whose turn.
        served = []
        for number in range(66):
            served.append(asyncio.create_task(ask(number)))
            expected = number + 1
            await until(lambda: len(gate.order) + queued(gateway) == expected)  # noqa: B023
        refused = []
        for first in range(66, 500, 62):
            refused += await asyncio.gather(*(ask(number) for number in range(first, min(first + 62, 500))))
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"
        assert queued(gateway) == 64
        async with gateway.client() as looking:
            text = (await looking.get("/metrics")).text
        assert 'orchestrate_queue_depth{role="chat"} 64.0' in text
        assert 'orchestrate_queue_refused_total{role="chat"} 434.0' in text
        gate.open.set()
        answered = await asyncio.gather(*served)
    assert {answer.status_code for answer in answered} == {200}
    assert gate.most == 2
    assert gate.order[2:] == [str(number) for number in range(2, 66)], "first come, first served"
    await until(lambda: gateway.in_flight == 0)
    assert queued(gateway) == 0
    assert len(fake.seen) == 66


async def test_f25_who_leaves_the_line_gives_up_the_place_and_no_slot_is_lost(lab: Any) -> None:
    gate = Gate()
    gateway, (fake,) = await lab(gate, chat={"limits": {"max_in_flight": 2, "queue": 64}})
    drawn = random.Random(7)
    async with client_of(gateway, 200) as client:
        asking = []
        for number in range(42):
            body = {**(STREAM if number % 2 else CHAT), "user": str(number)}
            asking.append(asyncio.create_task(client.post(CHAT_PATH, json=body)))
            expected = number + 1
            await until(lambda: len(gate.order) + queued(gateway) == expected)  # noqa: B023
        leaving = set(drawn.sample(range(2, 42), 20)) | {0}
        for number in leaving:
            asking[number].cancel()
        await asyncio.gather(*(asking[number] for number in leaving), return_exceptions=True)
        # One of those who left had a slot: the next in line has it now.
        await until(lambda: queued(gateway) == 42 - 21 - 2)
        await until(lambda: gateway.in_flight == 2)
        gate.open.set()
        answered = await asyncio.gather(*(asking[number] for number in range(42) if number not in leaving))
    assert {answer.status_code for answer in answered} == {200}
    assert [int(user) for user in gate.order[2:]] == [number for number in range(2, 42) if number not in leaving]
    await until(lambda: gateway.in_flight == 0)
    assert gateway.standing("a").breaker.failures == 0
    assert len(fake.seen) == 22


async def test_f17_clients_that_leave_at_any_moment_leave_nothing_behind(lab: Any) -> None:
    gateway, (fake,) = await lab(answers(words=20, pause_s=0.02), chat={"limits": {"max_in_flight": 50}})
    drawn = random.Random(11)
    async with client_of(gateway, 300) as client:

        async def leave(number: int) -> None:
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(drawn.uniform(0.0, 1.0)):
                    await client.post(CHAT_PATH, json=STREAM if number % 2 else CHAT)

        await asyncio.gather(*(leave(number) for number in range(200)))
    await until(lambda: gateway.in_flight == 0 and not queued(gateway))
    state = gateway.standing("a").breaker
    assert isinstance(state, Closed)
    assert state.failures == 0
    assert len(fake.seen) <= 200, "nobody is asked again for a client that is gone"
    async with gateway.client() as client:
        assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 200


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["json", "stream"])
async def test_f17_an_endpoint_is_freed_as_soon_as_its_client_leaves(lab: Any, body: dict[str, Any]) -> None:
    async def generates(exchange: Exchange) -> None:
        if exchange.seen.document.get("stream"):
            await exchange.begin_stream()
            await exchange.chunk(ROLE + word(0))
        await exchange.silence()

    gateway, (fake,) = await lab(generates)
    async with client_of(gateway, 1) as client:
        asking = asyncio.create_task(client.post(CHAT_PATH, json=body))
        await until(lambda: fake.seen)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    # 250 ms is the promise; a machine under load gets a deadline of its own.
    await asyncio.wait_for(fake.seen[0].was_cut.wait(), 60.0)
    await until(lambda: gateway.in_flight == 0)


async def test_f18_who_leaves_during_an_error_body_causes_no_further_attempt(lab: Any) -> None:
    begun = asyncio.Event()

    async def errs_slowly(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
        begun.set()
        await exchange.silence()

    gateway, (bad, good) = await lab(errs_slowly, answers())
    async with client_of(gateway, 1) as client:
        asking = asyncio.create_task(client.post(CHAT_PATH, json=CHAT))
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: gateway.in_flight == 0)
    assert isinstance(gateway.standing("a").breaker, Closed)
    assert (len(bad.seen), len(good.seen)) == (1, 0)


LONG = 200_000
"""Words of a stream that nobody reads: more than all buffers on its way hold."""


@pytest.mark.slow
async def test_f30_slow_readers_hold_their_endpoints_back_and_nobody_else_up(lab: Any) -> None:
    sent = 0

    async def endless(exchange: Exchange) -> None:
        nonlocal sent
        if exchange.seen.document.get("user") != "slow":
            await answers()(exchange)
            return
        await exchange.begin_stream()
        piece = b"".join(word(index) for index in range(100))
        for _ in range(LONG // 100):
            await exchange.chunk(piece)
            sent += len(piece)
        await exchange.chunk(FINISH + DONE)
        await exchange.end_stream()

    gateway, _ = await lab(endless)
    body = httpx.Request("POST", gateway.url + CHAT_PATH, json={**STREAM, "user": "slow"}).content
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nhost: 127.0.0.1:{gateway.port}\r\ncontent-length: {len(body)}\r\n"
    head += "content-type: application/json\r\n\r\n"
    tracemalloc.start()
    readers: list[socket.socket] = []
    try:
        for _ in range(50):
            # A window of a few kilobytes: what is not read waits in the gateway, or not at all.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            readers.append(sock)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
            await asyncio.get_running_loop().sock_sendall(sock, head.encode() + body)
        await until(lambda: gateway.in_flight == 50)
        before = -1
        while before != sent:
            # Until nothing moves any more: every buffer between the endpoint and its reader is full.
            before = sent
            for _ in range(50):
                await asyncio.sleep(0.01)
        whole = 50 * LONG * len(word(0))
        assert sent < whole / 2, "the endpoints are not held back"
        current, _ = tracemalloc.get_traced_memory()
        assert current < 50 * 2 * 1024 * 1024, f"{current} bytes for 50 readers"
        async with gateway.client() as client:
            for _ in range(5):
                answer = await client.post(CHAT_PATH, json=STREAM)
                assert words_of(answer.text) == ["w0", "w1", "w2"]
    finally:
        tracemalloc.stop()
        for sock in readers:
            sock.close()
    await until(lambda: gateway.in_flight == 0)


async def test_f23_with_every_endpoint_open_the_client_learns_when_to_come_back(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 50}})
    async with gateway.client() as client:
        await client.post(CHAT_PATH, json=CHAT)
        asked = len(fake.seen)
        answer = await client.post(CHAT_PATH, json=CHAT)
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 55
    assert len(fake.seen) == asked, "nobody waits in line for an endpoint that is down, and nobody asks it"


async def test_f23_with_every_endpoint_open_a_service_of_ours_answers_where_the_files_say_so(tmp_path: Path) -> None:
    fallback = {"fallback": {"local": "spare"}, "breaker": {"failure_threshold": 1, "reset_timeout_s": 50}}
    document = service_document("main", extra=("spare",), chat=fallback)
    async with FakeUpstream(refuses(500)) as main, FakeUpstream() as spare:
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            await gateway.publish(instance("main", main.url), instance("spare", spare.url))
            for attempts in ("2", "1"):
                answer = await client.post(CHAT_PATH, json=STREAM)
                assert words_of(answer.text) == ["w0", "w1", "w2"]
                assert answer.headers["x-orchestrate-fallback"] == "spare"
                assert answer.headers["x-orchestrate-attempts"] == attempts
            assert isinstance(gateway.standing("main").breaker, Open)
    assert len(main.seen) == 1


async def test_f23_with_every_endpoint_open_documents_come_back_unranked_where_the_files_say_so(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500))
    ranking = {
        "endpoints": {"a": {"helper": "a", "model": "model-a"}},
        "fallback": "skip",
        "breaker": {"failure_threshold": 1, "reset_timeout_s": 50},
    }
    await gateway.reload({**gateway.document, "roles": {"reranking": ranking}})
    asked = {"model": "reranking", "query": "q", "documents": ["a", "ccc", "bb"]}
    async with gateway.client() as client:
        for attempts in ("1", "0"):
            answer = await client.post("/v1/rerank", json=asked)
            assert answer.status_code == 200
            found = [(result["index"], result["ranked"]) for result in answer.json()["results"]]
            assert found == [(0, False), (1, False), (2, False)]
            assert answer.headers["x-orchestrate-fallback"] == "skip"
            assert answer.headers["x-orchestrate-attempts"] == attempts
    assert isinstance(gateway.standing("a").breaker, Open)
    assert len(fake.seen) == 1


async def test_time_that_was_spent_in_line_is_not_the_endpoints_fault(lab: Any) -> None:
    """The second request gets its place when nearly all of its time is over."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(2.5)
        await answers()(exchange)

    timeouts = {"total_s": 3.0, "queue_s": 3.0}
    gateway, _ = await lab(slow, chat={"limits": {"max_in_flight": 1, "queue": 8}, "timeouts": timeouts})
    async with client_of(gateway, 4) as client:
        await asyncio.gather(*(client.post(CHAT_PATH, json=CHAT) for _ in range(2)))
    await until(lambda: gateway.in_flight == 0)
    receipts = list(gateway.gateway.services.receipts.latest(2))
    late = [made.outcome for receipt in receipts for made in receipt.attempts if made.began_s > 1.0]
    assert set(late) <= {"out of time", "ok"}
    assert gateway.counted("a")[1] <= 1, "of the first one at most, which had all of its time"
