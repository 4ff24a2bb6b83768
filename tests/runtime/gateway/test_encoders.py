"""Embeddings and reranking through the gateway: the same failover as chat, and answers that are what was asked for."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import httpx
import openai
import pytest

from runtime.gateway import prober
from runtime.gateway.exchange import LARGEST_READ_HERE
from runtime.gateway.routing.breaker import Closed
from runtime.gateway.routing.settings import encoder_timeouts
from schemas.policy import Timeouts
from tests.fakes.encoders import embeds, ranks, vector
from tests.fakes.upstream import FakeUpstream, answers, refuses, resets, stalls
from tests.runtime.gateway.harness import LocalGateway, until

EMBED = {"model": "embedding", "input": ["one", "two"]}
RERANK = {"model": "reranking", "query": "q", "documents": ["a", "ccc", "bb"]}
SOON = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1, "max_reset_timeout_s": 0.1}}


def over(*names: str, **more: Any) -> dict[str, Any]:
    """Return a role over the helpers of these names, in their order."""
    endpoints = {
        name: {"helper": name, "model": f"model-{name}", "priority": index + 1} for index, name in enumerate(names)
    }
    return {"endpoints": endpoints, **more}


async def start(lab: Any, *behaviours: Any, **more: Any) -> tuple[LocalGateway, list[FakeUpstream]]:
    """Start fakes a, b, ... behind the roles that `more` declares; the role `chat` has one of its own, the last."""
    letters = "abcdef"[: len(behaviours)]
    roles = {name: more.pop(name) for name in ("embedding", "reranking", "other") if name in more}
    gateway, fakes = await lab(*behaviours, answers(), **more)
    document = gateway.document
    document["roles"] = {"chat": over("abcdef"[len(letters)]), **roles}
    await gateway.reload(document)
    return gateway, fakes


async def post(gateway: LocalGateway, path: str, body: dict[str, Any]) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(path, json=body)


async def test_vectors_are_served_by_the_first_endpoint_that_makes_them(lab: Any) -> None:
    gateway, (first, second, _) = await start(lab, refuses(500), embeds(4), embedding=over("a", "b", dimensions=4))
    answer = await post(gateway, "/v1/embeddings", EMBED)
    assert answer.status_code == 200
    assert [item["embedding"] for item in answer.json()["data"]] == [vector("one", 4), vector("two", 4)]
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("b", "2")
    assert second.seen[0].path == "/v1/embeddings"
    assert second.seen[0].document == {**EMBED, "model": "model-b"}
    assert len(first.seen) == 1


@pytest.mark.parametrize("knows_base64", [True, False])
async def test_a_large_answer_is_what_a_small_one_is(lab: Any, knows_base64: bool) -> None:
    length = LARGEST_READ_HERE
    gateway, _ = await start(lab, embeds(length, knows_base64=knows_base64), embedding=over("a", dimensions=length))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "encoding_format": "base64"})
    assert answer.status_code == 200
    assert {len(base64.b64decode(item["embedding"])) for item in answer.json()["data"]} == {4 * length}


@pytest.mark.parametrize("knows_base64", [True, False])
async def test_the_openai_client_gets_its_vectors(lab: Any, knows_base64: bool) -> None:
    gateway, _ = await start(lab, embeds(8, knows_base64=knows_base64), embedding=over("a", dimensions=8))
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        for form in ("float", "base64", None):
            wish = {} if form is None else {"encoding_format": form}
            found = await client.embeddings.create(model="embedding", input=["one", "two"], **wish)
            first = found.data[0].embedding
            if isinstance(first, str):
                first = list(struct.unpack("<8f", base64.b64decode(first)))
            assert first == vector("one", 8)
            assert [item.index for item in found.data] == [0, 1]


async def test_vectors_of_another_length_reach_nobody(lab: Any) -> None:
    gateway, (wrong, right, _) = await start(lab, embeds(3), embeds(4), embedding=over("a", "b", dimensions=4))
    for _ in range(5):
        answer = await post(gateway, "/v1/embeddings", EMBED)
        assert answer.headers["x-orchestrate-endpoint"] == "b"
    assert len(right.seen) == 5
    # Other roles may want these vectors: the endpoint is not called broken.
    assert isinstance(gateway.standing("a").breaker, Closed)
    right.behave = embeds(5)
    answer = await post(gateway, "/v1/embeddings", EMBED)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "no_endpoint_available"
    assert "a: vectors of 3 numbers, 4 are wanted, b: vectors of 5 numbers, 4 are wanted" in error["message"]
    assert len(wrong.seen) == 6


async def test_a_length_other_than_the_pinned_one_is_refused_before_anybody_is_asked(lab: Any) -> None:
    gateway, (fake, _) = await start(lab, embeds(4), embedding=over("a", dimensions=4))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "dimensions": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")
    assert not fake.seen
    assert (await post(gateway, "/v1/embeddings", {**EMBED, "dimensions": 4})).status_code == 200


def drop_one(document: dict[str, Any]) -> None:
    document["data"].pop()


async def test_fewer_vectors_than_texts_are_a_failure(lab: Any) -> None:
    gateway, _ = await start(lab, embeds(4, change=drop_one), embeds(4), embedding=over("a", "b", dimensions=4))
    answer = await post(gateway, "/v1/embeddings", EMBED)
    assert answer.headers["x-orchestrate-endpoint"] == "b"
    assert gateway.standing("a").last_error == "bad answer: 1 vectors for 2 texts"


def score_beyond_all_numbers(document: dict[str, Any]) -> None:
    document["results"][0]["relevance_score"] = 10**400


async def test_an_answer_that_nobody_has_foreseen_is_one_endpoints_failure(lab: Any) -> None:
    odd = ranks(change=score_beyond_all_numbers)
    gateway, _ = await start(lab, odd, ranks(), reranking=over("a", "b", fallback="skip"))
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-orchestrate-endpoint"] == "b"
    assert gateway.standing("a").last_error == "bad answer: OverflowError"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_are_ranked_under_every_path(lab: Any, path: str) -> None:
    gateway, (fake, _) = await start(lab, ranks(), reranking=over("a", fallback="skip"))
    answer = await post(gateway, path, {**RERANK, "top_n": 2, "return_documents": True})
    assert answer.json()["results"] == [
        {"index": 1, "relevance_score": 0.03, "document": {"text": "ccc"}},
        {"index": 2, "relevance_score": 0.02, "document": {"text": "bb"}},
    ]
    assert "x-orchestrate-fallback" not in answer.headers
    assert fake.seen[0].path == "/v1/rerank"


@pytest.mark.parametrize("broken", [resets, refuses(503), refuses(404), refuses(501), ranks(change=dict.clear)])
async def test_documents_come_back_in_their_order_where_nobody_ranks(lab: Any, broken: Any) -> None:
    gateway, _ = await start(lab, broken, reranking=over("a", fallback="skip"))
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert answer.status_code == 200
    assert [result["index"] for result in answer.json()["results"]] == [0, 1, 2]
    assert all(result["ranked"] is False for result in answer.json()["results"])
    assert answer.headers["x-orchestrate-fallback"] == "skip"


async def test_a_wrong_request_is_never_skipped(lab: Any) -> None:
    gateway, _ = await start(lab, refuses(400), reranking=over("a", fallback="skip"))
    assert (await post(gateway, "/v1/rerank", RERANK)).status_code == 400


async def test_skip_stands_at_the_end_of_a_ladder_of_roles(lab: Any) -> None:
    ladder = {
        "reranking": over("a", fallback={"role": "other"}),
        "other": over("b", fallback="skip"),
    }
    gateway, (_, second, _) = await start(lab, refuses(500), ranks(), **ladder)
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-fallback"]) == ("b", "other")
    second.behave = refuses(500)
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert answer.headers["x-orchestrate-fallback"] == "skip"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {**EMBED, "model": "chat"}, "'chat' is for chat, not for embedding: send such requests to"),
        ("/v1/embeddings", {**EMBED, "model": "reranking"}, "to POST /v1/rerank."),
        ("/v1/rerank", {**RERANK, "model": "embedding"}, "to POST /v1/embeddings."),
        (
            "/v1/chat/completions",
            {"model": "model-a", "messages": [{"role": "user", "content": "hi"}]},
            "'model-a' is for embedding, not for chat: send such requests to POST /v1/embeddings.",
        ),
    ],
)
async def test_the_right_path_is_named_to_who_takes_the_wrong_one(
    lab: Any, path: str, body: dict[str, Any], says: str
) -> None:
    gateway, _ = await start(
        lab, embeds(4), ranks(), embedding=over("a", dimensions=4), reranking=over("b", fallback="skip")
    )
    answer = await post(gateway, path, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_kind")
    assert says in answer.json()["error"]["message"]


async def test_the_list_of_models_says_what_each_name_is_for(lab: Any) -> None:
    gateway, _ = await start(
        lab, embeds(4), ranks(), embedding=over("a", dimensions=4), reranking=over("b", fallback="skip")
    )
    async with gateway.client() as client:
        cards = (await client.get("/v1/models")).json()["data"]
    assert {card["id"]: card["task"] for card in cards} == {
        "chat": "chat", "embedding": "embedding", "reranking": "reranking",
        "model-a": "embedding", "model-b": "reranking", "model-c": "chat",
    }  # fmt: skip


@pytest.mark.slow
async def test_a_hanging_endpoint_leaves_time_for_the_next(lab: Any) -> None:
    """Half of it for each: a busy machine may need some seconds of the other half."""
    role = over("a", "b", dimensions=4, timeouts={"total_s": 20})
    gateway, (first, *_) = await start(lab, stalls, embeds(4), embedding=role)
    answer = await post(gateway, "/v1/embeddings", EMBED)
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("b", "2")
    await asyncio.wait_for(first.seen[0].was_cut.wait(), 30)


async def test_all_of_a_request_takes_thirty_seconds_where_nobody_says_more(lab: Any) -> None:
    policy = {"policies": {"slow": {"timeouts": {"first_token_s": 300, "total_s": 900}}}}
    gateway, _ = await start(
        lab, embeds(4), ranks(), embedding=over("a", dimensions=4, policy="slow"),
        reranking=over("b", fallback="skip", timeouts={"total_s": 90}), **policy,
    )  # fmt: skip
    table = gateway.gateway.services.live.table
    assert table is not None
    assert (table.routes["embedding"].total_s, table.routes["reranking"].total_s) == (30, 90)
    assert table.routes["embedding"].tiers[0][0].timeouts.first_token_s == 30
    assert table.routes["reranking"].tiers[0][0].timeouts.first_token_s == 90  # the role's own word, not the policy's
    assert table.routes["chat"].total_s == 600


@pytest.mark.parametrize(
    ("policy", "own", "ways", "total_s", "share_s"),
    [
        ({}, None, 1, 30, 30),
        ({}, None, 3, 30, 10),
        ({}, {"total_s": 120}, 1, 120, 120),  # the quickstart: a processor without a GPU
        ({}, {"total_s": 120}, 2, 120, 60),
        ({"first_token_s": 20}, {"total_s": 120}, 1, 120, 120),
        ({"first_token_s": 20}, {"connect_s": 1}, 1, 30, 20),
        ({}, {"total_s": 120, "first_token_s": 50}, 1, 120, 50),
    ],
)
def test_an_attempt_gets_its_share_of_what_the_role_itself_says(
    policy: dict[str, float], own: dict[str, float] | None, ways: int, total_s: float, share_s: float
) -> None:
    found = encoder_timeouts(Timeouts(**policy), None if own is None else Timeouts(**own), ways)
    assert (found.total_s, found.first_token_s) == (total_s, share_s)


async def test_ollama_is_never_asked_to_rerank(lab: Any) -> None:
    gateway, (fake, _) = await start(lab, ranks(), reranking=over("a", fallback="skip"))
    gateway.document["helpers"]["a"]["api"] = "ollama"
    await gateway.reload(gateway.document)
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert answer.headers["x-orchestrate-fallback"] == "skip"
    assert not fake.seen
    report = next(each for each in (await gateway.config())["endpoints"] if each["role"] == "reranking")
    assert report["last_error"] == "helpers.a.api: Ollama has no reranking API"


@pytest.mark.parametrize(
    ("behave", "role", "path"),
    [
        (embeds(4), {"embedding": over("a", dimensions=768, **SOON)}, "/v1/embeddings"),
        (ranks(), {"reranking": over("a", **SOON, fallback="skip")}, "/v1/rerank"),
    ],
)
async def test_a_probe_asks_for_what_the_model_makes(
    lab: Any, monkeypatch: pytest.MonkeyPatch, behave: Any, role: dict[str, Any], path: str
) -> None:
    monkeypatch.setattr(prober, "PROBE_S", 5.0)
    gateway, (fake, _) = await start(lab, refuses(500), **role)
    body = EMBED if path == "/v1/embeddings" else RERANK
    await post(gateway, path, body)
    assert not isinstance(gateway.standing("a").breaker, Closed)
    fake.behave = behave
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed), what="the probe closes the breaker")
    assert {seen.path for seen in fake.seen} == {path}
    assert fake.seen[-1].headers["x-orchestrate-probe"] == "1"


async def test_an_embedding_service_ranks_as_the_last_resort(lab: Any) -> None:
    """A worker of ours answers both paths with an embedding model; the role decides which."""
    gateway, (embedder, _) = await start(lab, ranks(), embedding=over("a", dimensions=4))
    document = gateway.document
    document["models"] = {"encoder": {"source": "path:/m", "kind": "embedding"}}
    document["services"] = {"embed": {"model": "encoder", "nodes": ["here"]}}
    document["roles"]["reranking"] = {"endpoints": {"embed": {"service": "embed"}}, "fallback": "skip"}
    await gateway.reload(document)
    instance = {"unit": "embed-0.0@1", "node": "here", "service": "embed", "model": "encoder", "state": "ready"}
    await gateway.publish({**instance, "url": embedder.url})
    answer = await post(gateway, "/v1/rerank", RERANK)
    assert [result["index"] for result in answer.json()["results"]] == [1, 2, 0]
    assert embedder.seen[-1].path == "/v1/rerank"
    assert embedder.seen[-1].headers["authorization"] == "Bearer worker-token"
    refused = await post(gateway, "/v1/rerank", {**RERANK, "model": "embed"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "wrong_kind")
