"""Streams in the words of every protocol: each event is as described, and a client that leaves frees the endpoint."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    Behaviour,
    Exchange,
    answers,
    chunk_document,
    event,
    stalls,
    streams,
    word,
)
from tests.runtime.gateway.harness import until
from tests.runtime.gateway.openapi.described import check, document, events, resolved, validator

SAID = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": SAID, "max_tokens": 9, "thinking": {"type": "adaptive"}},
    "/api/chat": {"messages": SAID},
    "/api/generate": {"prompt": "hi"},
}
"""The least that each path that streams is asked."""
TRANSLATED = sorted(ASKED.keys() - {"/v1/chat/completions", "/v1/completions"})
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
THOUGHT, CALLED = event(chunk_document({"reasoning_content": "hm "})), event(chunk_document({"tool_calls": [CALL]}))
LOGPROBS = [{"token": "w", "logprob": -0.5, "bytes": [119], "top_logprobs": []}]
LIKELY = chunk_document({"content": "w"})
LIKELY["choices"][0]["logprobs"] = {"content": LOGPROBS}
USAGE = event(
    {**chunk_document({}), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}
)
ERROR = event({"error": {"message": "boom", "type": "server_error", "code": None, "param": None}})
SCRIPTS: dict[str, tuple[bytes, ...]] = {
    "words": (ROLE, *map(word, range(5)), FINISH, USAGE, DONE),
    "thinking": (ROLE, THOUGHT, THOUGHT, word(0), FINISH, DONE),
    "a call": (ROLE, word(0), CALLED, event(chunk_document({}, "tool_calls")), DONE),
    "cut off": (ROLE, word(0), event(chunk_document({}, "length")), DONE),
    "a refusal": (ROLE, event(chunk_document({"refusal": "no"})), FINISH, DONE),
    "log probabilities": (ROLE, event(LIKELY), FINISH, DONE),
    "an error behind content": (ROLE, word(0), ERROR),
    "the end of the connection": (ROLE, word(0)),
}


def scripts(path: str) -> dict[str, tuple[bytes, ...]]:
    if path != "/v1/completions":
        return SCRIPTS
    said, last = ({"index": 0, "text": "w", "finish_reason": reason} for reason in (None, "stop"))
    one, end = (event({**chunk_document({}), "object": "text_completion", "choices": [each]}) for each in (said, last))
    return {"words": (one, one, end, DONE), "an error behind content": (one, ERROR)}


def test_every_path_that_streams_is_asked_here() -> None:
    streamed = set()
    for path, item in document()["paths"].items():
        answer = resolved(item.get("post", {}).get("responses", {}).get("200", {}))
        if any("x-event" in kind for kind in answer.get("content", {}).values()):
            streamed.add(path)
    assert streamed == ASKED.keys()


@pytest.mark.parametrize("path", ASKED)
async def test_every_event_is_as_described(lab: Any, path: str) -> None:
    gateway, (fake,) = await lab(answers())
    async with gateway.client() as client:
        for name, pieces in scripts(path).items():
            fake.behave = streams(*pieces, then="hang up")
            answer = await client.post(path, json={"model": "chat", "stream": True, **ASKED[path]})
            assert answer.status_code == 200, f"{name}: {answer.text}"
            check(answer, path)
            assert len(events(answer.text, answer.headers["content-type"])) >= 2, name


def test_an_event_that_is_not_described_is_found() -> None:
    path = "/api/chat"
    described = resolved(document()["paths"][path]["post"]["responses"]["200"])["content"]["application/x-ndjson"]
    good = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "x"}}
    shape = validator(described["x-event"])
    assert shape.is_valid({**good, "done": False})
    assert not shape.is_valid({**good, "done": "no"}) and not shape.is_valid({"done": False})


async def begins(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(ROLE + word(0) + word(1))
    await exchange.silence()


@pytest.mark.parametrize("path", TRANSLATED)
@pytest.mark.parametrize(("behave", "is_stream"), [(stalls, False), (stalls, True), (begins, True)])
async def test_a_client_that_leaves_frees_the_endpoint(lab: Any, path: str, behave: Behaviour, is_stream: bool) -> None:
    gateway, (fake,) = await lab(behave)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    raw = json.dumps({"model": "chat", "stream": is_stream, **ASKED[path]}).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()
    await until(lambda: fake.seen)
    if behave is begins:
        await until(lambda: fake.seen[0].is_begun)
    writer.close()
    # At once on an idle machine; all timeouts of the gateway are longer.
    await asyncio.wait_for(fake.seen[0].was_cut.wait(), 25)
    await until(lambda: gateway.in_flight == 0)
    assert gateway.counted("a") == (0, 0)
    fake.behave = answers()
    async with gateway.client() as client:
        answer = await client.post(path, json={"model": "chat", "stream": False, **ASKED[path]})
    assert answer.status_code == 200, answer.text
