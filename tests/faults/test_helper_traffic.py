"""Requests for vectors and scores, however many and however bad their endpoints are, and chat beside them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.fakes.encoders import embeds
from tests.fakes.upstream import Exchange, answers, refuses, stalls
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, until, words_of

pytestmark = pytest.mark.slow

CHAT_PATH = "/v1/chat/completions"
EMBED = {"model": "embedding", "input": ["one", "two"]}
RERANK = {"model": "reranking", "query": "q", "documents": ["a", "ccc", "bb"]}
PLACES, LINE = 2, 16
ASKED = 60
"""Requests for vectors at the same time: more than there are places, in the line as well."""


def over(*names: str, **more: Any) -> dict[str, Any]:
    """Return a role over helpers, one per priority in their order."""
    endpoints = {name: {"helper": name, "model": f"model-{name}", "priority": n} for n, name in enumerate(names, 1)}
    return {"endpoints": endpoints, **more}


async def start(lab: Any, *behaviours: Any, **roles: Any) -> LocalGateway:
    """Start fakes a, b, ... and a gateway with these roles; what the harness calls chat is one of them."""
    gateway, _ = await lab(*behaviours)
    helpers = json.loads(json.dumps(gateway.document["helpers"]))
    for role in roles.keys() & {"embedding", "reranking"}:
        for name in roles[role]["endpoints"]:
            helpers[name]["models"][f"model-{name}"]["kind"] = role
    await gateway.reload({**gateway.document, "roles": roles, "helpers": helpers})
    return gateway


def client_of(gateway: LocalGateway) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=ASKED * 3, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=gateway.url, timeout=120, trust_env=False, limits=limits)


async def test_chat_is_answered_while_every_helper_hangs_and_their_lines_are_full(lab: Any) -> None:
    is_over = asyncio.Event()

    async def hangs(exchange: Exchange) -> None:
        await is_over.wait()
        await embeds(4)(exchange)

    limits = {"max_in_flight": PLACES, "queue": LINE}
    timeouts = {"total_s": 600.0, "queue_s": 600.0}
    gateway = await start(
        lab, hangs, stalls, answers(),
        embedding=over("a", limits=limits, timeouts=timeouts),
        reranking=over("b", limits=limits, timeouts=timeouts),
        chat=over("c", limits=limits),
    )  # fmt: skip
    services = gateway.gateway.services
    async with client_of(gateway) as client:
        embedding = [asyncio.create_task(client.post("/v1/embeddings", json=EMBED)) for _ in range(ASKED)]
        ranking = [asyncio.create_task(client.post("/v1/rerank", json=RERANK)) for _ in range(PLACES + LINE)]
        await until(lambda: services.queues.depths == {"embedding": LINE, "reranking": LINE})
        await until(lambda: sum(task.done() for task in embedding) == ASKED - PLACES - LINE)
        for body in (CHAT, STREAM) * 10:
            answer = await client.post(CHAT_PATH, json=body)
            assert answer.status_code == 200
            assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("c", "1")
            assert body is CHAT or words_of(answer.text) == ["w0", "w1", "w2"]
        assert services.queues.depths == {"embedding": LINE, "reranking": LINE}, "all of them wait, still"
        for task in ranking:
            task.cancel()
        is_over.set()
        statuses = [(await task).status_code for task in embedding]
        await asyncio.gather(*ranking, return_exceptions=True)
    assert sorted(statuses) == [200] * (PLACES + LINE) + [429] * (ASKED - PLACES - LINE)
    await until(lambda: gateway.in_flight == 0)


async def test_helpers_that_fail_use_up_no_second_attempt_of_chat(lab: Any) -> None:
    never = {"breaker": {"failure_threshold": 1000, "minimum_calls": 1000}}
    gateway = await start(
        lab, refuses(500), refuses(500), refuses(500), answers(),
        embedding=over("a", "b", **never), chat=over("c", "d", **never),
    )  # fmt: skip
    async with client_of(gateway) as client:
        failed = await asyncio.gather(*(client.post("/v1/embeddings", json=EMBED) for _ in range(ASKED)))
        assert {answer.status_code for answer in failed} == {503}
        asking = [asyncio.create_task(client.post("/v1/embeddings", json=EMBED)) for _ in range(ASKED)]
        for body in (CHAT, STREAM) * 5:
            answer = await client.post(CHAT_PATH, json=body)
            assert answer.status_code == 200, answer.text
            assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("d", "2")
        await asyncio.gather(*asking)


@pytest.mark.parametrize("change", [{}, {"encoding_format": "base64"}], ids=["as-they-come", "in-the-other-form"])
async def test_chat_goes_on_while_answers_of_many_megabytes_are_read(lab: Any, change: dict[str, Any]) -> None:
    """The interpreter parses nothing at one go for as long as an answer is large: there is chat in between."""
    texts, length = 512, 4096
    numbers = "[" + ",".join(f"{place / 7:.17g}" for place in range(length)) + "]"
    items = ",".join(f'{{"object":"embedding","index":{index},"embedding":{numbers}}}' for index in range(texts))
    whole = f'{{"object":"list","data":[{items}],"model":"m","usage":{{"prompt_tokens":9,"total_tokens":9}}}}'.encode()
    assert len(whole) > 30 * 1024 * 1024

    async def embeds_much(exchange: Exchange) -> None:
        await exchange.answer(200, whole)

    gateway = await start(lab, embeds_much, answers(), embedding=over("a"), chat=over("b"))
    asked = {"model": "embedding", "input": ["text"] * texts, **change}
    async with client_of(gateway) as client:
        large = asyncio.create_task(client.post("/v1/embeddings", json=asked))
        beside = 0
        while not large.done():
            assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 200
            beside += 1
        answer = await large
    assert answer.status_code == 200
    assert len(json.loads(answer.content)["data"]) == texts
    assert beside >= 5, "chat was answered meanwhile, again and again"
