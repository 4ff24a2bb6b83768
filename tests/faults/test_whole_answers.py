"""F03 to F12 for clients that want one document: an endpoint that hangs is left long before the request's own time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    Behaviour,
    answers,
    completion,
    event,
    refuses,
    stalls,
    streams,
    word,
)
from tests.runtime.gateway.harness import CHAT, LocalGateway, until

SHORT_S = 1.0
"""Of which making a connection is a small part, however busy the machine is."""
LATE_S = 60.0
"""Longer than anything here takes, and far less than the request's own ten minutes."""
TOOLS = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}


def role(**first: Any) -> dict[str, Any]:
    return {
        "endpoints": {
            "a": {"helper": "a", "model": "model-a", "priority": 1, **first},
            "b": {"helper": "b", "model": "model-b", "priority": 2},
        }
    }


async def before(lab: Any, *behaviours: Behaviour, **chat: Any) -> tuple[LocalGateway, list[Any]]:
    """Start a gateway whose first endpoint is a worker."""
    gateway, fakes = await lab(*behaviours, chat=chat)
    document = json.loads(json.dumps(gateway.document))
    document["helpers"]["a"]["api"] = "worker"
    await gateway.reload(document)
    return gateway, fakes


async def ask(gateway: LocalGateway, **more: Any) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post("/v1/chat/completions", json={**CHAT, **more}, timeout=LATE_S)


async def test_a_worker_that_hangs_is_left_at_its_limit_for_the_first_content(lab: Any) -> None:
    gateway, _ = await before(lab, stalls, answers("well"), **role(timeout_s=SHORT_S))
    answer = await ask(gateway)
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert gateway.standing("a").last_error.startswith("no first content")
    assert gateway.counted("a") == (0, 1)


@pytest.mark.parametrize("then", ["reset", "end"])
async def test_an_answer_that_breaks_off_is_given_whole_by_another_one(lab: Any, then: str) -> None:
    gateway, _ = await before(lab, streams(ROLE, word(0), word(1), then=then), answers("well"), **role())
    answer = await ask(gateway)
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert answer.json()["choices"][0]["message"]["content"] == "well"
    assert gateway.counted("a") == (0, 1)


async def test_an_error_in_the_middle_is_no_answer_either(lab: Any) -> None:
    failed = event({"error": {"message": "a rank was lost", "type": "server_error", "code": None}})
    gateway, _ = await before(lab, streams(ROLE, word(0), failed), answers("well"), **role())
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"


async def test_one_document_is_made_of_the_stream(lab: Any) -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    told = event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    gateway, (fake, _) = await before(lab, streams(ROLE, word(0), word(1), FINISH, told, DONE), answers(), **role())
    answer = await ask(gateway)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "w0 w1 "}, "finish_reason": "stop"}],
        "usage": usage,
    }
    assert fake.seen[-1].document["stream"] is True


async def test_calls_and_refusals_come_as_the_worker_gives_them(lab: Any) -> None:
    gateway, (fake, _) = await before(lab, answers("called"), answers(), **role())
    answer = await ask(gateway, **TOOLS)
    assert answer.json() == completion("/v1/chat/completions", "called")
    assert "stream" not in fake.seen[-1].document
    error = {"error": {"message": "No.", "type": "invalid_request_error", "param": "seed", "code": "bad"}}
    fake.behave = refuses(400, error)
    answer = await ask(gateway)
    assert (answer.status_code, answer.json()) == (400, error)


async def test_a_client_that_leaves_frees_the_worker(lab: Any) -> None:
    gateway, (fake, _) = await before(lab, streams(ROLE, word(0), then="silence"), answers(), **role())
    client = asyncio.create_task(ask(gateway))
    await until(lambda: fake.seen)
    client.cancel()
    await until(fake.seen[-1].was_cut.is_set)
    await until(lambda: gateway.in_flight == 0)
    assert gateway.counted("a") == (0, 0)
