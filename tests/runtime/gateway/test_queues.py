"""Requests that wait for a place: who gets it, who is told to come back, and when nobody waits."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from runtime.gateway import attempt
from runtime.gateway.queues import Queues, Waiter
from runtime.gateway.routing.breaker import Open
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.pool import Pool
from schemas.stack import Stack
from tests.fakes.encoders import embeds
from tests.fakes.upstream import Exchange, answers, refuses
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, stack_document, until, words_of

CHAT_PATH = "/v1/chat/completions"


class Place:
    """Stands for a lease, which is all that a line knows of it."""

    def __init__(self) -> None:
        self.is_released = False

    def release(self) -> None:
        self.is_released = True


class Desk:
    """Gives out as many places as it has."""

    def __init__(self) -> None:
        self.places: list[Any] = []
        self.hope: float | None = math.inf

    def take(self) -> Lease | float | None:
        return self.places.pop(0) if self.places else self.hope


def join(queues: Queues, desk: Desk, name: str = "chat", most: int = 9, **more: Any) -> Waiter:
    waiter = queues.join(name, 1, most, desk.take, **{"is_plain": True, **more})
    assert waiter is not None
    return waiter


async def test_a_place_goes_to_whoever_waits_longest() -> None:
    queues, desk = Queues(), Desk()
    waiters = [join(queues, desk) for _ in range(3)]
    for expected in range(3):
        desk.places.append(Place())
        queues.changed()
        assert [waiter.future.done() for waiter in waiters] == [number <= expected for number in range(3)]
    assert queues.depths == {}


async def test_the_oldest_of_all_lines_comes_first() -> None:
    queues, desk = Queues(), Desk()
    chat, other, late = join(queues, desk), join(queues, desk, "other"), join(queues, desk)
    desk.places.extend([Place(), Place()])
    queues.changed()
    assert (chat.future.done(), other.future.done(), late.future.done()) == (True, False, True)
    desk.places.append(Place())
    queues.changed()
    assert other.future.done()


async def test_who_leaves_gives_a_place_that_came_at_the_same_moment_back() -> None:
    queues, desk = Queues(), Desk()
    waiter, place = join(queues, desk), Place()
    desk.places.append(place)
    queues.changed()
    queues.leave(waiter)
    assert place.is_released
    kept, other = Place(), join(queues, desk)
    desk.places.append(kept)
    queues.changed()
    queues.leave(other, with_lease=True)
    assert not kept.is_released


async def test_who_can_use_only_some_places_holds_nobody_up() -> None:
    queues, desk, picky = Queues(), Desk(), Desk()
    first, second = join(queues, picky, is_plain=False), join(queues, desk)
    desk.places.append(Place())
    queues.changed()
    assert (first.future.done(), second.future.done()) == (False, True)


async def test_a_line_is_as_long_as_it_may_be_and_no_longer() -> None:
    queues, desk = Queues(), Desk()
    for _ in range(2):
        join(queues, desk, most=2)
    assert queues.join("chat", 1, 2, desk.take, is_plain=True) is None
    assert join(queues, desk, most=2, is_again=True), "who was held before is not refused"


async def test_those_whom_waiting_helps_no_more_are_told_so_at_once() -> None:
    queues, desk = Queues(), Desk()
    waiters = [join(queues, desk) for _ in range(3)]
    desk.hope = None
    queues.changed()
    assert [waiter.future.result() for waiter in waiters] == [None] * 3


async def test_a_place_that_is_free_at_a_known_time_is_taken_then() -> None:
    queues, desk = Queues(), Desk()
    desk.hope = 0.01
    waiter = join(queues, desk)
    desk.places.append(Place())
    assert await asyncio.wait_for(waiter.future, 30.0)
    queues.close()


class Gate:
    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.seen = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.seen += 1
        await self.open.wait()
        await answers()(exchange)


def queued(gateway: LocalGateway) -> int:
    return sum(gateway.gateway.services.queues.depths.values())


async def test_the_depth_is_shown_and_a_waiting_stream_gets_comments(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "HOLD_S", 0.05)
    monkeypatch.setattr(attempt, "COMMENT_S", 0.05)
    gate = Gate()
    gateway, _ = await lab(gate, chat={"limits": {"max_in_flight": 1}})
    async with gateway.client() as client:
        first = asyncio.create_task(client.post(CHAT_PATH, json=CHAT))
        await until(lambda: gate.seen)
        async with client.stream("POST", CHAT_PATH, json=STREAM) as answer:
            pieces = answer.aiter_text()
            assert await anext(pieces) == ": keep-alive\n\n"
            assert (await gateway.config())["queued"] == {"chat": 1}
            gate.open.set()
            text = "".join([piece async for piece in pieces])
        assert (await first).status_code == 200
    assert words_of(text) == ["w0", "w1", "w2"]
    assert text.endswith("data: [DONE]\n\n")


async def test_who_has_waited_in_vain_is_told_how_long_the_line_is(lab: Any) -> None:
    gate = Gate()
    gateway, _ = await lab(gate, chat={"limits": {"max_in_flight": 1}, "timeouts": {"queue_s": 0.1}})
    async with gateway.client() as client:
        first = asyncio.create_task(client.post(CHAT_PATH, json=CHAT))
        await until(lambda: gate.seen)
        answer = await client.post(CHAT_PATH, json=CHAT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_endpoint_available"
        assert "a: full" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        gate.open.set()
        assert (await first).status_code == 200


async def test_retry_after_is_what_the_line_will_take(lab: Any) -> None:
    gate = Gate()
    gateway, _ = await lab(gate, chat={"limits": {"max_in_flight": 2, "queue": 3}, "timeouts": {"queue_s": 600}})
    gateway.standing("a").pace.answered(20.0)
    async with gateway.client() as client:
        waiting = [asyncio.create_task(client.post(CHAT_PATH, json=CHAT)) for _ in range(5)]
        await until(lambda: queued(gateway) == 3)
        refused = await client.post(CHAT_PATH, json=CHAT)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "40", "three wait, two at a time, 20 s each"
        gate.open.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_a_saturated_endpoint_is_waited_for_when_there_is_nobody_else(lab: Any) -> None:
    async def busy_once(exchange: Exchange) -> None:
        await (refuses(429, retry_after="1") if len(fake.seen) == 1 else answers("at last"))(exchange)

    gateway, (fake,) = await lab(busy_once, chat={"limits": {"queue": 2}})
    async with gateway.client() as client:
        answer = await client.post(CHAT_PATH, json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "at last"
        assert answer.headers["x-orchestrate-attempts"] == "2"
        receipt = (await client.get(f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}")).json()
    busy, good = receipt["attempts"]
    assert good["began_s"] - busy["ended_s"] > 0.9, "it has waited for as long as the endpoint said"
    assert gateway.standing("a").breaker.failures == 0, "busy is no failure"


async def test_an_endpoint_that_is_always_busy_is_asked_only_so_often(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(429, retry_after="0"), chat={"limits": {"attempts": 3}})
    async with gateway.client() as client:
        answer = await client.post(CHAT_PATH, json=CHAT)
    assert answer.status_code == 503
    assert len(fake.seen) == 3


async def test_another_endpoint_comes_before_any_wait(lab: Any) -> None:
    gate = Gate()
    gateway, (_, other) = await lab(gate, answers(), chat={"limits": {"max_in_flight": 1}})
    async with gateway.client() as client:
        first = asyncio.create_task(client.post(CHAT_PATH, json=CHAT))
        await until(lambda: gate.seen)
        assert (await client.post(CHAT_PATH, json=CHAT)).headers["x-orchestrate-endpoint"] == "b"
        gate.open.set()
        await first
    assert len(other.seen) == 1


async def test_those_in_line_hear_at_once_that_the_endpoint_is_gone(lab: Any) -> None:
    gate = Gate()
    limits = {"limits": {"max_in_flight": 1}, "breaker": {"failure_threshold": 1, "reset_timeout_s": 300}}
    gateway, (fake,) = await lab(gate, chat={**limits, "timeouts": {"queue_s": 600}})
    async with gateway.client() as client:
        asking = [asyncio.create_task(client.post(CHAT_PATH, json=CHAT)) for _ in range(6)]
        await until(lambda: queued(gateway) == 5 and gate.seen == 1)
        await fake.stop()
        answered = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answered} == {503}
    assert isinstance(gateway.standing("a").breaker, Open)
    assert queued(gateway) == 0


async def test_a_place_in_a_newer_table_is_taken_by_those_who_wait(lab: Any) -> None:
    gate = Gate()
    gateway, _ = await lab(gate, chat={"limits": {"max_in_flight": 1}, "timeouts": {"queue_s": 600}})
    async with gateway.client() as client:
        asking = [asyncio.create_task(client.post(CHAT_PATH, json=CHAT)) for _ in range(3)]
        await until(lambda: queued(gateway) == 2)
        document = gateway.document
        document["roles"]["chat"]["limits"]["max_in_flight"] = 3
        await gateway.reload(document)
        await until(lambda: gate.seen == 3)
        gate.open.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


async def test_no_more_requests_a_minute_than_the_files_allow(lab: Any) -> None:
    gateway, fakes = await lab(answers(), answers(), chat={"limits": {"rpm": 2, "queue": 0}})
    async with gateway.client() as client:
        found = [await client.post(CHAT_PATH, json=CHAT) for _ in range(5)]
    assert [answer.headers.get("x-orchestrate-endpoint") for answer in found] == ["a", "a", "b", "b", None]
    assert found[4].status_code == 503
    assert 1 <= int(found[4].headers["retry-after"]) <= 61
    assert "rate limit" in found[4].json()["error"]["message"]
    assert [len(fake.seen) for fake in fakes] == [2, 2]


async def test_a_helper_that_is_flooded_takes_nothing_from_chat(lab: Any) -> None:
    """Embedding at its limits: every slot, every place in line and every retry of its own taken."""
    gate = asyncio.Event()
    good = embeds(3)

    async def slow(exchange: Exchange) -> None:
        await gate.wait()
        await good(exchange)

    roles = {
        "chat": {"endpoints": {"a": {"helper": "a", "model": "model-a"}}, "limits": {"max_in_flight": 1}},
        "embedding": {
            "endpoints": {"b": {"helper": "b", "model": "model-b"}, "c": {"helper": "c", "model": "model-c"}},
            "dimensions": 3,
            "limits": {"max_in_flight": 8, "queue": 32},
        },
    }
    gateway, (fake, *_) = await lab(answers(), slow, slow, roles=roles)
    async with gateway.client() as client:
        body = {"model": "embedding", "input": "x" * 1000}
        flood = [asyncio.create_task(client.post("/v1/embeddings", json=body)) for _ in range(80)]
        await until(lambda: sum(task.done() for task in flood) == 80 - 16 - 32)
        for _ in range(10):
            answer = await client.post(CHAT_PATH, json=CHAT)
            assert answer.status_code == 200
            assert answer.headers["x-orchestrate-attempts"] == "1"
        assert gateway.gateway.services.queues.depths == {"embedding": 32}
        gate.set()
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*flood))
    assert statuses == [200] * 48 + [429] * 32
    assert len(fake.seen) == 10


def test_retries_of_a_failing_helper_leave_chat_its_own() -> None:
    document = stack_document({"a": "http://h1:1", "b": "http://h2:1"})
    document["roles"]["other"] = document["roles"]["chat"]
    table = build_table(Stack.model_validate(document, strict=False), None, environ={}, worker_token=None)
    pool = Pool(lambda: 0.0, lambda: 0.0)
    pool.adopt(table)
    first = pool.lease(table.routes["other"], ())
    assert isinstance(first, Lease)
    while pool.may_retry(table.routes["other"]):
        pool.lease(table.routes["other"], [first.target.identity])
    assert pool.may_retry(table.routes["chat"])
