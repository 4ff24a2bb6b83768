"""Failover, the commit point and cancellation, over real sockets against real fakes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from runtime.gateway import attempt, connections, streaming
from runtime.gateway.routing.breaker import Closed, Open
from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    Behaviour,
    Exchange,
    FakeUpstream,
    answers,
    completion,
    event,
    head,
    refuses,
    resets,
    stalls,
    streams,
    word,
)
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, until, words_of

CHAT_PATH = "/v1/chat/completions"
FIRST_SOON = {
    "endpoints": {
        "a": {"helper": "a", "model": "model-a", "priority": 1, "timeout_s": 0.3},
        "b": {"helper": "b", "model": "model-b", "priority": 2},
    }
}
"""A role whose first endpoint is soon given up. The other one has all the time of a busy machine."""


async def post(gateway: LocalGateway, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json=body, headers=headers)


async def closes_the_port(fake: FakeUpstream) -> None:
    await fake.stop()


async def html(exchange: Exchange) -> None:
    await exchange.answer(200, b"<html>welcome</html>", content_type="text/html")


async def truncated(exchange: Exchange) -> None:
    await exchange.raw(head(200, {"content_type": "application/json", "content_length": "500"}) + b'{"a": ')
    exchange.hang_up()


async def garbage(exchange: Exchange) -> None:
    await exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
    exchange.hang_up()


async def half_a_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-ty")
    exchange.hang_up()


async def endless_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    for _ in range(40):
        await exchange.raw(b"x-filler: " + b"y" * 4000 + b"\r\n")


async def upgrade(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")


async def compressed(exchange: Exchange) -> None:
    await exchange.answer(200, b"\x1f\x8b....", content_encoding="gzip")


def is_probe(exchange: Exchange) -> bool:
    return exchange.seen.headers["x-request-id"] == "probe"


ERROR_EVENT = event({"error": {"message": "engine died at /opt/x/y", "type": "server_error"}})

BROKEN_FOR_BOTH: dict[str, Behaviour] = {
    "reset": resets,
    "html": html,
    "garbage": garbage,
    "half a head": half_a_head,
    "endless head": endless_head,
    "upgrade": upgrade,
    "compressed": compressed,
    "html 500": refuses(500, b"<html>Internal</html>", content_type="text/html"),
    "empty 502": refuses(502, b""),
    "redirect": refuses(302, b"", location="http://127.0.0.1:1/"),
    "503": refuses(503),
    "no content": refuses(204, b""),
    "engine 404": refuses(404, {"error": "list index out of range"}),
}
BROKEN_STREAMS: dict[str, Behaviour] = {
    "stalls": stalls,
    "head then silence": streams(then="silence"),
    "role then silence": streams(ROLE, then="silence"),
    "comments then silence": streams(b": a\n\n", b": b\n\n", then="silence"),
    "role then end": streams(ROLE),
    "role then reset": streams(ROLE, then="reset"),
    "role then hang-up": streams(ROLE, then="hang up"),
    "half an event": streams(ROLE, word(0)[:20], then="hang up"),
    "error event": streams(ROLE, ERROR_EVENT),
    "JSON instead of a stream": refuses(200, completion("/v1/chat/completions", "x")),
}


@pytest.mark.parametrize("name", [*BROKEN_FOR_BOTH, *BROKEN_STREAMS])
async def test_before_content_another_endpoint_takes_over_unseen(lab: Any, name: str) -> None:
    # Only who says nothing has to be given up: the time of the others is that of a busy machine too.
    is_silent = name == "stalls" or name.endswith("silence")
    chat = FIRST_SOON if is_silent else {}
    gateway, (bad, good) = await lab({**BROKEN_FOR_BOTH, **BROKEN_STREAMS}[name], answers(), chat=chat)
    answer = await post(gateway, STREAM)
    assert answer.status_code == 200
    assert words_of(answer.text) == ["w0", "w1", "w2"]
    assert answer.text.count('"role"') == 1, "one normal stream"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["x-orchestrate-endpoint"] == "b"
    assert answer.headers["x-orchestrate-attempts"] == "2"
    assert len(good.seen) == 1
    assert len(bad.seen) == 1 or (is_silent and not bad.seen), "it may be given up before it has read the request"
    assert gateway.counted("a") == (0, 1)
    await until(lambda: gateway.in_flight == 0)


@pytest.mark.parametrize("name", [*BROKEN_FOR_BOTH, "truncated"])
async def test_without_a_stream_too(lab: Any, name: str) -> None:
    gateway, (bad, _) = await lab({**BROKEN_FOR_BOTH, "truncated": truncated}[name], answers("fine"))
    answer = await post(gateway, CHAT)
    assert answer.json()["choices"][0]["message"]["content"] == "fine"
    assert answer.headers["x-orchestrate-attempts"] == "2"
    assert len(bad.seen) == 1
    assert gateway.counted("a") == (0, 1)


async def test_a_closed_port_costs_little_and_opens_the_breaker_after_exactly_the_threshold(lab: Any) -> None:
    gateway, (bad, good) = await lab(answers(), answers())
    await bad.stop()
    for count in (1, 2):
        started = time.perf_counter()
        assert (await post(gateway, CHAT)).headers["x-orchestrate-endpoint"] == "b"
        assert time.perf_counter() - started < 30.0
        assert gateway.counted("a") == (0, count)
    await post(gateway, CHAT)
    assert isinstance(gateway.standing("a").breaker, Open)
    await bad.start(bad.port)
    assert (await post(gateway, CHAT)).headers["x-orchestrate-attempts"] == "1"
    assert bad.connections == 0, "an open breaker makes no connection"
    assert len(good.seen) == 4


async def test_an_open_breaker_closes_after_a_real_answer(lab: Any) -> None:
    breaker = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 60.0}}
    gateway, (fake,) = await lab(refuses(500), chat=breaker)
    assert (await post(gateway, CHAT)).status_code == 503
    fake.behave = answers()
    refused = await post(gateway, CHAT)
    assert (refused.status_code, len(fake.seen)) == (503, 1)
    assert 1 <= int(refused.headers["retry-after"]) <= 66
    standing = gateway.standing("a")
    assert isinstance(standing.breaker, Open)
    standing.breaker = replace(standing.breaker, until=asyncio.get_running_loop().time())  # as if its time had passed
    assert (await post(gateway, CHAT)).status_code == 200
    assert isinstance(gateway.standing("a").breaker, Closed)


async def test_a_trial_closes_the_breaker_at_its_first_content(lab: Any) -> None:
    breaker = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.05}}
    gateway, (fake,) = await lab(refuses(500), chat=breaker)
    await post(gateway, CHAT)
    gate = asyncio.Event()

    async def long_answer(exchange: Exchange) -> None:
        if is_probe(exchange):
            await refuses(400)(exchange)
            return
        if gate.is_set():
            await answers()(exchange)
            return
        await exchange.begin_stream()
        await exchange.chunk(ROLE + word(0))
        gate.set()
        await exchange.silence()

    fake.behave = long_answer
    async with gateway.client() as client:

        async def is_let_through() -> bool:
            answer = await client.send(client.build_request("POST", CHAT_PATH, json=STREAM), stream=True)
            return answer.status_code == 200

        await until(is_let_through)
        assert (await post(gateway, CHAT)).status_code == 200, "others need not wait for the trial's end"
    await until(lambda: gateway.in_flight == 0)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_clients_error_is_passed_on_unchanged_and_not_retried(lab: Any, status: int) -> None:
    raw = b'{"error":{"message":"context too long", "type":"invalid_request_error","param":"messages","code":"c"}}'
    gateway, (bad, other) = await lab(refuses(status, raw), answers())
    for body in (CHAT, STREAM) * 5:
        answer = await post(gateway, body)
        assert (answer.status_code, answer.content) == (status, raw)
    assert (len(bad.seen), len(other.seen)) == (10, 0)
    assert gateway.counted("a") == (0, 0)


async def test_an_absent_model_is_looked_for_elsewhere_and_is_404_only_when_nobody_has_it(lab: Any) -> None:
    raw = b'{"error":{"message":"model not found","type":"invalid_request_error","param":null,"code":"x"}}'
    gateway, (_, good) = await lab(refuses(404, raw), answers())
    assert (await post(gateway, CHAT)).headers["x-orchestrate-attempts"] == "2"
    assert (await post(gateway, CHAT)).headers["x-orchestrate-attempts"] == "1", "others are preferred now"
    good.behave = refuses(404, raw)
    answer = await post(gateway, CHAT)
    assert (answer.status_code, answer.content) == (404, raw)
    assert gateway.counted("a") == (0, 0)


async def test_wrong_credentials_are_shown_and_no_failure(lab: Any) -> None:
    gateway, _ = await lab(refuses(401), answers())
    attempts = [(await post(gateway, CHAT)).headers["x-orchestrate-attempts"] for _ in range(5)]
    assert attempts == ["2", "1", "1", "1", "1"], "others are asked first until the next check"
    assert gateway.counted("a") == (0, 0)
    assert "credentials" in gateway.standing("a").last_error


@pytest.mark.parametrize("behave", [refuses(429, retry_after="60"), refuses(503, retry_after="60")])
async def test_a_busy_endpoint_is_left_alone_for_as_long_as_it_says(lab: Any, behave: Behaviour) -> None:
    gateway, (busy, _) = await lab(behave, answers())
    for _ in range(4):
        assert (await post(gateway, CHAT)).status_code == 200
    assert len(busy.seen) == 1
    assert gateway.counted("a") == (0, 0)


async def test_when_everybody_is_busy_the_client_learns_the_shortest_wait(lab: Any) -> None:
    gateway, _ = await lab(refuses(429, retry_after="60"), refuses(503, retry_after="45"))
    first, second = await post(gateway, CHAT), await post(gateway, STREAM)
    for answer in (first, second):
        assert answer.status_code == 503
        assert 0 < int(answer.headers["retry-after"]) <= 45
        assert answer.json()["error"]["code"] == "no_endpoint_available"
    assert (first.headers["x-orchestrate-attempts"], second.headers["x-orchestrate-attempts"]) == ("2", "0")


async def test_at_most_as_many_attempts_as_declared_each_somewhere_else(lab: Any) -> None:
    gateway, upstreams = await lab(*[refuses(500)] * 4, chat={"limits": {"attempts": 3}})
    answer = await post(gateway, CHAT)
    assert answer.status_code == 503
    assert answer.headers["x-orchestrate-attempts"] == "3"
    assert [len(one.seen) for one in upstreams] == [1, 1, 1, 0]


async def test_errors_show_neither_addresses_nor_paths(lab: Any) -> None:
    leak = {"error": {"message": "http://10.0.0.3:8000 failed in /srv/models/x.py", "type": "t", "code": None}}
    gateway, (fake,) = await lab(refuses(422, leak))
    for behave in (refuses(422, leak), refuses(500, leak), streams(event(leak)), resets):
        fake.behave = behave
        answer = await post(gateway, STREAM)
        assert answer.status_code in {422, 503}
        assert not [word for word in ("10.0.0.3", "/srv", "127.0.0.1", str(fake.port)) if word in answer.text]


async def test_a_kept_connection_that_died_in_silence_is_replaced_unseen(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 60.0)
    gateway, (fake,) = await lab(answers())
    await post(gateway, CHAT)

    async def dies_if_kept(exchange: Exchange) -> None:
        await (resets(exchange) if exchange.seen.connection == 1 else answers()(exchange))

    fake.behave = dies_if_kept
    answer = await post(gateway, STREAM)
    assert (answer.status_code, answer.headers["x-orchestrate-attempts"]) == (200, "1")
    assert [seen.connection for seen in fake.seen] == [1, 1, 2]
    assert gateway.counted("a") == (0, 0)


@pytest.mark.parametrize("behave", [resets, half_a_head])
async def test_a_request_is_not_sent_twice_over_new_connections_or_after_a_byte(lab: Any, behave: Behaviour) -> None:
    gateway, (fake,) = await lab(answers())
    if behave is half_a_head:
        await post(gateway, CHAT)
        fake.seen.clear()
    fake.behave = behave
    assert (await post(gateway, CHAT)).status_code == 503
    assert len(fake.seen) == 1


# --- after the commit point


@pytest.mark.parametrize("then", ["reset", "hang up", "silence", "end"])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(lab: Any, then: str) -> None:
    sent = [word(index) for index in range(20)]
    chat = {"timeouts": {"idle_s": 3.0}} if then == "silence" else {}
    gateway, (_, other) = await lab(streams(ROLE, *sent, word(20)[:30], then=then), answers(), chat=chat)
    answer = await post(gateway, STREAM)
    assert answer.status_code == 200
    assert words_of(answer.text) == [f"w{index}" for index in range(20)], "exactly the whole events"
    assert "[DONE]" not in answer.text
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert other.seen == [], "nobody else is asked"
    assert gateway.counted("a") == (0, 1)
    await until(lambda: gateway.in_flight == 0)


async def test_an_error_event_in_the_middle_ends_the_stream_once_and_cleaned(lab: Any) -> None:
    gateway, _ = await lab(streams(ROLE, word(0), ERROR_EVENT, DONE))
    answer = await post(gateway, STREAM)
    assert words_of(answer.text) == ["w0"]
    assert answer.text.count('"error"') == 1
    assert "/opt" not in answer.text and "[DONE]" not in answer.text
    assert gateway.counted("a") == (0, 1)


async def test_a_malformed_event_is_passed_on_and_counted(lab: Any) -> None:
    gateway, _ = await lab(streams(ROLE, b"data: {oops\n\n", word(0), word(1), FINISH, DONE))
    answer = await post(gateway, STREAM)
    assert "data: {oops\n\n" in answer.text
    assert "w1" in answer.text and answer.text.endswith("data: [DONE]\n\n")
    assert gateway.counted("a") == (0, 0)


@pytest.mark.parametrize("ending", [[FINISH], [FINISH, b"data: [DONE]"], [FINISH[:-2]]])
async def test_a_complete_answer_gets_the_ending_that_clients_wait_for(lab: Any, ending: list[bytes]) -> None:
    gateway, _ = await lab(streams(ROLE, word(0), *ending))
    answer = await post(gateway, STREAM)
    assert answer.text.count("data: [DONE]\n\n") == 1
    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"stop"' in answer.text
    assert gateway.counted("a") == (0, 0)


async def test_an_endpoint_that_does_not_close_after_done_holds_nobody_for_long(lab: Any) -> None:
    gateway, _ = await lab(streams(ROLE, word(0), FINISH, DONE, then="silence"))
    started = time.perf_counter()
    answer = await post(gateway, STREAM)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert time.perf_counter() - started < streaming.TRAILER_S + 20.0
    assert gateway.counted("a") == (0, 0)


async def test_bytes_reach_the_client_as_they_come(lab: Any) -> None:
    gate = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(ROLE + word(0))
        await gate.wait()
        await exchange.chunk(word(1) + FINISH + DONE)
        await exchange.end_stream()

    gateway, _ = await lab(behave)
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        pieces = answer.aiter_text()
        assert words_of(await anext(pieces)) == ["w0"]
        gate.set()
        assert words_of("".join([piece async for piece in pieces])) == ["w1"]


async def test_a_long_wait_begins_the_stream_with_comments(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "HOLD_S", 0.15)
    monkeypatch.setattr(attempt, "COMMENT_S", 0.1)
    gate = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await gate.wait()
        await answers()(exchange)

    gateway, (first, _) = await lab(slow, answers())
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_text()
        assert await anext(pieces) == ": keep-alive\n\n"
        assert await anext(pieces) == ": keep-alive\n\n"
        gate.set()
        rest = "".join([piece async for piece in pieces])
    assert words_of(rest) == ["w0", "w1", "w2"]

    gate.clear()

    async def slow_refusal(exchange: Exchange) -> None:
        await gate.wait()
        await refuses(422, {"error": {"message": "no", "type": "invalid_request_error"}})(exchange)

    first.behave = slow_refusal
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_text()
        assert await anext(pieces) == ": keep-alive\n\n"
        gate.set()
        rest = "".join([piece async for piece in pieces])
    assert '"error"' in rest and "[DONE]" not in rest


# --- the client leaves


@pytest.mark.parametrize(
    ("behave", "body"),
    [
        (stalls, CHAT),
        (stalls, STREAM),
        (streams(ROLE, then="silence"), STREAM),
        (streams(ROLE, word(0), then="silence"), STREAM),
        (answers(words=10_000, pause_s=0.01), STREAM),
        (stalls, {**CHAT, "messages": [{"role": "user", "content": "x" * 400_000}]}),
    ],
    ids=["json", "before head", "before content", "idle stream", "running stream", "large body"],
)
async def test_a_client_that_leaves_frees_the_endpoint_at_once(
    lab: Any, behave: Behaviour, body: dict[str, Any]
) -> None:
    gateway, (fake, other) = await lab(behave, answers())
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    raw = json.dumps(body).encode()
    writer.write(f"POST {CHAT_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()
    await until(lambda: fake.seen)
    if behave is not stalls:
        await until(lambda: fake.seen[0].is_begun)
    writer.close()
    await asyncio.wait_for(fake.seen[0].was_cut.wait(), 30)  # at once on an idle machine; its own timeouts are longer
    await until(lambda: gateway.in_flight == 0)
    assert other.seen == [], "no further attempt"
    assert gateway.counted("a") == (0, 0)


async def test_many_clients_leaving_at_any_moment_leave_nothing_behind(lab: Any) -> None:
    patient = {"timeouts": {"connect_s": 60}}  # 100 connections at once, on whatever machine this is
    gateway, (fake,) = await lab(answers(words=50, pause_s=0.005), chat=patient)
    raw = json.dumps(STREAM).encode()
    request = f"POST {CHAT_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw

    async def come_and_go(index: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request)
        await asyncio.sleep(0.004 * (index % 50))
        writer.close()

    await asyncio.gather(*(come_and_go(index) for index in range(100)))
    await until(lambda: gateway.in_flight == 0)
    assert gateway.standing("a").last_error is None
    assert gateway.counted("a") == (0, 0)
    fake.behave = answers()
    assert (await post(gateway, CHAT)).status_code == 200


async def test_a_client_that_reads_nothing_holds_the_endpoint_back_and_is_let_go(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.gateway.api import relaying

    monkeypatch.setattr(relaying, "STALL_S", 1.0)
    sent = 0
    big = word(0).replace(b"w0", b"x" * 50_000)

    async def firehose(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.begin_stream()
        for _ in range(2000):
            await exchange.chunk(big)
            sent += len(big)

    gateway, (fake,) = await lab(firehose)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    raw = json.dumps(STREAM).encode()
    writer.write(f"POST {CHAT_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
    await until(lambda: fake.seen)
    await asyncio.wait_for(fake.seen[0].was_cut.wait(), 30)
    assert sent < 60_000_000, "the endpoint was held back"
    await until(lambda: gateway.in_flight == 0)
    assert gateway.counted("a") == (0, 0)
    writer.close()
