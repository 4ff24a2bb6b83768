"""What goes on to endpoints and what comes back: keys stay where they belong, and nothing of the inside is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, local_gateway, stack_document

PATH = "/v1/chat/completions"
KEYS = {"a": "sk-canary-of-a-000000", "b": "sk-canary-of-b-111111"}
Two = tuple[LocalGateway, FakeUpstream, FakeUpstream]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    """Two helpers with keys of their own, one behind the other."""
    async with FakeUpstream() as first, FakeUpstream() as second:
        document = stack_document({"a": first.url, "b": second.url})
        for name, key in KEYS.items():
            document["helpers"][name]["key"] = key
        async with local_gateway(tmp_path, document) as gateway:
            yield gateway, first, second


async def test_the_key_of_a_helper_goes_to_that_helper_only(two: Two) -> None:
    gateway, first, second = two
    first.behave = refuses(500)
    async with gateway.client() as client:
        for body in (CHAT, STREAM):
            answer = await client.post(PATH, json=body, headers={"authorization": "Bearer of-the-client"})
            assert answer.headers["x-orchestrate-endpoint"] == "b"
    for fake, own in ((first, KEYS["a"]), (second, KEYS["b"])):
        assert fake.seen
        for seen in fake.seen:
            assert seen.headers["authorization"] == f"Bearer {own}"
            text = repr((seen.headers, seen.body))
            assert not [key for key in (*KEYS.values(), "of-the-client") if key != own and key in text]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_its_goal_not_told(two: Two, status: int) -> None:
    gateway, first, second = two
    first.behave = refuses(status, b"", location=second.url + PATH)
    async with gateway.client() as client:
        answer = await client.post(PATH, json={**CHAT, "model": "a"})
    assert answer.status_code >= 500
    assert "location" not in answer.headers
    assert str(second.port) not in answer.text
    assert second.seen == []


async def test_no_proxy_of_the_environment_is_used(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, first, _ = two
    async with FakeUpstream() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with gateway.client() as client:
            assert (await client.post(PATH, json=CHAT)).status_code == 200
        assert proxy.seen == []
    assert len(first.seen) == 1


OVERRIDES = ("api_base", "base_url", "api_key", "extra_headers", "extra_body", "headers", "proxy", "fallbacks")


@pytest.mark.parametrize("name", OVERRIDES)
async def test_a_body_cannot_say_where_and_as_whom_to_ask(two: Two, name: str) -> None:
    gateway, first, second = two
    async with gateway.client() as client:
        for path, body in (
            (PATH, CHAT),
            ("/v1/completions", {"model": "chat", "prompt": "x"}),
            ("/v1/embeddings", {"model": "chat", "input": "x"}),
            ("/v1/rerank", {"model": "chat", "query": "x", "documents": ["y"]}),
        ):
            for value in ("http://127.0.0.1:1", None, {"x": "y"}):
                answer = await client.post(path, json={**body, name: value})
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, name), answer.text
    assert not first.seen + second.seen


async def test_only_headers_of_ours_come_back(two: Two) -> None:
    gateway, first, _ = two

    async def behave(exchange: Exchange) -> None:
        document = {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
        secrets = {"set-cookie": "a=b", "server": "engine/1.2", "x-internal": "10.0.0.1", "via": "proxy"}
        await exchange.answer(200, document, **secrets)

    first.behave = behave
    async with gateway.client() as client:
        answer = await client.post(PATH, json=CHAT)
    ours = {name for name in answer.headers if not name.startswith("x-orchestrate-")}
    assert ours <= {"content-type", "content-length", "connection", "alt-svc"}


LEAKY = (
    f"cannot open http://10.1.2.3:8080/v1 with key {KEYS['a']}",
    "File /srv/models/secret/run.py, line 3: connect to fd00::7:1234 failed",
    'Traceback (most recent call last):\n  File "/opt/engine/app.py", line 1, in <module>\nValueError',
)


@pytest.mark.parametrize("text", LEAKY)
@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 503])
async def test_errors_tell_nothing_of_the_inside(two: Two, text: str, status: int) -> None:
    gateway, first, second = two
    first.behave = second.behave = refuses(status, {"error": {"message": text, "type": "t", "code": text}})
    async with gateway.client() as client:
        for body in (CHAT, STREAM):
            answer = await client.post(PATH, json=body)
            assert answer.status_code >= 400
            for secret in ("10.1.2.3", "fd00::7", "/srv/models", "/opt/engine", "canary", str(first.port)):
                assert secret not in answer.text


async def test_an_error_inside_a_stream_is_cleaned_too(two: Two) -> None:
    gateway, first, _ = two

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n')
        await exchange.chunk(b'data: {"error":{"message":"%s"}}\n\n' % LEAKY[0].encode())
        await exchange.end_stream()

    first.behave = behave
    async with gateway.client() as client:
        text = (await client.post(PATH, json=STREAM)).text
    assert "error" in text
    assert "10.1.2.3" not in text and "canary" not in text


async def test_a_failing_handler_shows_no_traceback(two: Two) -> None:
    gateway, first, _ = two
    first.behave = answers()
    live: Any = gateway.gateway.services.live
    live.table = replace(live.table, cards=None)  # whatever goes wrong inside
    async with gateway.client() as client:
        answer = await client.get("/v1/models")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "Internal error."
    assert "Traceback" not in answer.text and ".py" not in answer.text
