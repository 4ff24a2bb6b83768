"""The HTTP surface: shapes, headers, and every bad request to every path."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import FakeUpstream, answers, stalls
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, until, words_of
from tests.runtime.gateway.test_bodies import BAD_CHAT, BAD_COMPLETION, BAD_JSON

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
TEXT = {"model": "chat", "prompt": "once"}


@pytest.fixture
async def served(lab: Any) -> AsyncIterator[tuple[LocalGateway, FakeUpstream, httpx.AsyncClient]]:
    """A gateway with one good endpoint, aliases, and a body limit of 64 KiB."""
    gateway, (fake,) = await lab(
        answers(), aliases={"gpt-4o-mini": ["chat"], "org/name:7b@x": ["chat"]}, gateway={"body_limit_mib": 0.0625}
    )
    async with gateway.client() as client:
        yield gateway, fake, client


Served = tuple[LocalGateway, FakeUpstream, httpx.AsyncClient]


def assert_error(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check the shape that every error has, and return its content."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-orchestrate-request-id"]
    assert answer.headers["x-orchestrate-generation"] == "0"
    assert answer.headers["x-orchestrate-attempts"].isdigit()
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    if code is not None:
        assert error["code"] == code
    return error


async def test_every_bad_body_is_400_and_reaches_nobody(served: Served) -> None:
    _, fake, client = served
    for path in (CHAT_PATH, TEXT_PATH):
        bad = BAD_CHAT if path == CHAT_PATH else BAD_COMPLETION
        for raw in (*BAD_JSON, *(json.dumps(document).encode() for document in bad)):
            if len(raw) < 60_000:
                assert_error(await client.post(path, content=raw), 400)
    assert fake.seen == []
    assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 200, "everything is as it was"


@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH])
async def test_a_body_over_the_limit_is_413(served: Served, path: str) -> None:
    gateway, fake, client = served

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    assert_error(await client.post(path, content=b"x" * 200_000), 413, "request_too_large")
    assert_error(await client.post(path, content=pieces()), 413, "request_too_large")
    assert fake.seen == []
    large = {**CHAT, "messages": [{"role": "user", "content": "y" * 60_000}]}
    assert (await client.post(CHAT_PATH, json=large)).status_code == 200
    changed = {**gateway.document, "gateway": {"node": "here", "body_limit_mib": 0.01}}
    await gateway.reload(changed)
    assert_error(await client.post(CHAT_PATH, json=large), 413)


async def test_unknown_models_are_404_in_openais_shape(served: Served) -> None:
    _, _, client = served
    error = assert_error(await client.post(CHAT_PATH, json={**CHAT, "model": "nope"}), 404, "model_not_found")
    assert error["param"] == "model"
    assert_error(await client.get("/v1/models/nope"), 404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/nope", 404),
        ("GET", "/v1/chat/completions/extra", 404),
        ("GET", "/%2e%2e/etc", 404),
        ("GET", CHAT_PATH, 405),
        ("DELETE", TEXT_PATH, 405),
        ("POST", "/v1/models", 405),
        ("PUT", "/health", 405),
        ("POST", "/metrics", 405),
        ("GET", "/admin/config/reload", 405),
        ("PATCH", "/admin/config", 405),
    ],
)
async def test_wrong_paths_and_methods(served: Served, method: str, path: str, status: int) -> None:
    _, _, client = served
    answer = await client.request(method, path, content=b"{}")
    assert_error(answer, status)
    assert (status == 405) == ("allow" in answer.headers)


async def test_models_are_listed_and_found_by_ids_with_slashes_and_colons(served: Served) -> None:
    _, _, client = served
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert {card["id"]: card["kind"] for card in listed["data"]} == {
        "chat": "role",
        "gpt-4o-mini": "alias",
        "org/name:7b@x": "alias",
        "model-a": "model",
    }
    for path in ("/v1/models/org/name:7b@x", "/v1/models/org%2Fname%3A7b%40x"):
        card = (await client.get(path)).json()
        assert (card["id"], card["object"], card["owned_by"]) == ("org/name:7b@x", "model", "orchestrate")
        assert isinstance(card["created"], int)


@pytest.mark.parametrize("model", ["chat", "gpt-4o-mini", "org/name:7b@x", "a", "model-a"])
async def test_every_kind_of_name_is_served_under_the_endpoints_own_model(served: Served, model: str) -> None:
    _, fake, client = served
    answer = await client.post(CHAT_PATH, json={**CHAT, "model": model, "temperature": 0.5})
    assert answer.status_code == 200
    assert fake.seen[0].document == {**CHAT, "model": "model-a", "temperature": 0.5}
    assert fake.seen[0].path == CHAT_PATH
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    assert (await client.post(TEXT_PATH, json={**TEXT, "model": model})).json()["object"] == "text_completion"
    assert fake.seen[1].path == TEXT_PATH


async def test_request_ids_are_the_clients_where_they_are_sane(served: Served) -> None:
    _, fake, client = served
    mine = await client.post(CHAT_PATH, json=CHAT, headers={"x-request-id": "trace-1.2:3"})
    assert mine.headers["x-orchestrate-request-id"] == "trace-1.2:3"
    assert fake.seen[0].headers["x-request-id"] == "trace-1.2:3"
    for strange in ("a b", "x" * 200, "<script>", ""):
        answer = await client.post(CHAT_PATH, json=CHAT, headers={"x-request-id": strange})
        assert re.fullmatch(r"req-[0-9a-f]{12}-[0-9a-f]+", answer.headers["x-orchestrate-request-id"])


async def test_made_request_ids_are_never_the_same(served: Served) -> None:
    _, _, client = served
    answers = [await client.get("/health") for _ in range(20)]
    assert len({answer.headers["x-orchestrate-request-id"] for answer in answers}) == 20


async def test_no_header_of_the_client_reaches_the_endpoint(served: Served) -> None:
    _, fake, client = served
    theirs = {"authorization": "Bearer client", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "x-api-key": "k"}
    await client.post(CHAT_PATH, json=CHAT, headers=theirs)
    assert not {"authorization", "cookie", "x-forwarded-for", "x-api-key"} & set(fake.seen[0].headers)


async def test_streams_have_the_headers_of_streams(served: Served) -> None:
    _, _, client = served
    answer = await client.post(CHAT_PATH, json=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    assert words_of(answer.text) == ["w0", "w1", "w2"]


async def test_health_readiness_and_metrics(served: Served) -> None:
    gateway, fake, client = served
    assert (await client.get("/health")).json() == {"status": "ok"}
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["roles"]) == (200, {"chat": {"available": 1, "endpoints": 1}})
    await client.post(CHAT_PATH, json=CHAT)
    await client.post(CHAT_PATH, json={**CHAT, "model": "unknown-to-all"})
    text = (await client.get("/metrics")).text
    for line in (
        'orchestrate_requests_total{endpoint="a",outcome="ok",role="chat"} 1.0',
        "mlx_cluster_requests_total 1.0",
        "mlx_cluster_tokens_generated_total 5.0",
        "orchestrate_config_current 1.0",
        "orchestrate_config_problems 0.0",
        f'orchestrate_in_flight{{endpoint="a",role="chat",url="{fake.url}"}} 0.0',
        f'orchestrate_breaker_state{{endpoint="a",role="chat",url="{fake.url}"}} 0.0',
        'orchestrate_request_seconds_count{role="chat"} 1.0',
        'orchestrate_config_reloads_total{result="good"} 1.0',
    ):
        assert line in text.splitlines()
    assert "unknown-to-all" not in text, "labels come from the configuration only"
    gateway.gateway.services.live.is_draining = True
    assert (await client.get("/ready")).status_code == 503


async def test_known_but_down_is_503_with_retry_after_at_once(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    await fake.stop()
    async with gateway.client() as client:
        for body in (CHAT, STREAM) * 3:
            answer = await client.post(CHAT_PATH, json=body)
            assert_error(answer, 503, "no_endpoint_available")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.elapsed.total_seconds() < 20.0, "at once on an idle machine"
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["roles"]["chat"]["available"]) == (503, 0)
        config = (await client.get("/admin/config")).json()
    assert config["endpoints"][0]["state"] == "open"
    assert config["endpoints"][0]["last_error"] == "refused"


# --- raw sockets

GET = b"GET /health HTTP/1.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n"
SMUGGLED = b"GET /admin/config HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes and read until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        POST + b"host: localhost\r\ncontent-length : 42\r\n\r\n" + SMUGGLED,
        POST + b"host: localhost\r\ncontent-length: 42\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"host: localhost\r\ncontent-length: 42\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
        POST + b"host: localhost\r\ncontent-length: -1\r\n\r\n" + SMUGGLED,
        POST + b"host: localhost\r\ntransfer-encoding: xchunked\r\n\r\n" + SMUGGLED,
        GET + b"\r\n" + SMUGGLED,
        GET + b"host: localhost\r\nhost: b\r\n\r\n" + SMUGGLED,
        GET + b"host: a/public?x=\r\n\r\n" + SMUGGLED,
        GET + b"host: localhost\r\nx: 1\x002\r\n\r\n" + SMUGGLED,
        GET + b"host: localhost\r\nx: 1\n2\r\n\r\n" + SMUGGLED,
        GET + b"host: localhost\r\nbad name: 1\r\n\r\n" + SMUGGLED,
        b"GET http://evil/health HTTP/1.1\r\nhost: localhost\r\n\r\n" + SMUGGLED,
        b"GET /health HTTP/3.0\r\nhost: localhost\r\n\r\n" + SMUGGLED,
        b"CONNECT evil:443 HTTP/1.1\r\nhost: localhost\r\n\r\n" + SMUGGLED,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"garbage\r\n\r\n" + SMUGGLED,
    ],
)
async def test_a_head_that_can_be_read_in_two_ways_is_400_and_ends_the_connection(served: Served, data: bytes) -> None:
    answer = await raw(served[0].port, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is no request"
    _, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert b"x-orchestrate-request-id" in answer


async def test_a_head_that_is_too_large_is_refused(served: Served) -> None:
    answer = await raw(served[0].port, GET + b"host: localhost\r\nx: " + b"y" * 20_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error"' in answer


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    body = json.dumps(CHAT).encode()
    one = POST + b"host: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    last = GET + b"host: localhost\r\nconnection: close\r\n\r\n"
    answer = await raw(served[0].port, one + one + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"200"]
    assert answer.endswith(b'{"status": "ok"}')


async def test_expect_continue_is_answered(served: Served) -> None:
    body = json.dumps(CHAT).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served[0].port)
    writer.write(POST + b"host: localhost\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_chunked_request_bodies_are_read(served: Served) -> None:
    body = json.dumps(CHAT).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = await raw(
        served[0].port, POST + b"host: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunks
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_slow_upload_has_a_deadline(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.gateway.api import answers as api

    monkeypatch.setattr(api, "BODY_S", 0.2)
    gateway, (fake,) = await lab(stalls)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(POST + b"host: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 408")
    writer.close()
    assert fake.seen == []
    await until(lambda: gateway.in_flight == 0)


@pytest.mark.parametrize("coding", [b"Chunked", b"chunked \t", b"CHUNKED"])
async def test_the_transfer_coding_may_be_written_in_any_case(served: Served, coding: bytes) -> None:
    body = json.dumps(CHAT).encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = POST + b"host: localhost\r\ntransfer-encoding: %b\r\nconnection: close\r\n\r\n" % coding
    assert (await raw(served[0].port, head + framed)).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_no_handler_reads_is_small_and_has_a_deadline(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.gateway.api import answers as api

    gateway, _, client = served
    for path in ("/health", "/v1/models", "/admin/config"):
        assert (await client.request("GET", path, content=b"x" * 60_000)).status_code == 200
        assert_error(await client.request("GET", path, content=b"x" * 70_000), 413, "request_too_large")
    assert_error(await client.post("/admin/config/reload", content=b"x" * 70_000), 413)
    monkeypatch.setattr(api, "BODY_S", 0.2)
    for length, status in ((b"60000000", b"413"), (b"60000", b"408")):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(GET + b"host: localhost\r\ncontent-length: %b\r\n\r\n{" % length)
        assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 " + status)
        writer.close()
