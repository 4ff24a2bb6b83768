"""Servers of somebody else's with shapes of their own, asked through the gateway in OpenAI's and Jina's."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import httpx
import pytest

from runtime.gateway import prober
from runtime.gateway.parts import AT_ONCE
from runtime.gateway.routing.breaker import Closed
from tests.fakes.encoders import embeds, vector
from tests.fakes.text_servers import infinity, ollama, score, tei
from tests.fakes.upstream import Behaviour, Exchange, answers, refuses, stalls
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, until, words_of

EMBED = {"model": "embedding", "input": ["one", "two two"]}
RERANK = {"model": "reranking", "query": "q", "documents": ["a", "ccc", "bb"]}
LONG = "word " * 600


def over(*names: str, kind: str = "", **more: Any) -> dict[str, Any]:
    """Return a role over the helpers of these names, in their order."""
    endpoints = {name: {"helper": name, "model": f"model-{name}", "priority": n + 1} for n, name in enumerate(names)}
    return {"endpoints": endpoints, **({"dimensions": 4} if kind == "embedding" else {}), **more}


@pytest.fixture
def helpers(lab: Any) -> Any:
    """Return a function that starts fakes a, b, ... as helpers of these APIs, all in one role."""

    async def start(role: str, *behaviours: tuple[str, Behaviour], **more: Any) -> tuple[LocalGateway, list[Any]]:
        gateway, fakes = await lab(*(behave for _, behave in behaviours))
        document, letters = gateway.document, "abcdef"[: len(behaviours)]
        fields = more.pop("helper", {})
        for letter, (api, _) in zip(letters, behaviours, strict=True):
            document["helpers"][letter] |= {"api": api, **fields}
            document["helpers"][letter]["models"][f"model-{letter}"] = {"kind": role}
        document["roles"] = {role: over(*letters, kind=role, **more)}
        await gateway.reload(document)
        return gateway, fakes

    return start


async def post(gateway: LocalGateway, path: str, body: dict[str, Any]) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(path, json=body)


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("api", "behave", "path", "sent"),
    [
        ("tei", tei(), "/embed", {"model": "model-a", "inputs": ["one", "two two"], "truncate": False}),
        ("infinity", infinity("model-a"), "/embeddings", {"model": "model-a", "input": ["one", "two two"]}),
        ("ollama", ollama("model-a"), "/api/embed",
         {"model": "model-a", "input": ["one", "two two"], "truncate": False}),
    ],
)  # fmt: skip
async def test_vectors_come_in_openais_shape(
    helpers: Any, api: str, behave: Behaviour, path: str, sent: dict[str, Any]
) -> None:
    gateway, (fake,) = await helpers("embedding", (api, behave))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "user": "me"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert [item["embedding"] for item in document["data"]] == [vector("one", 4), vector("two two", 4)]
    assert [item["index"] for item in document["data"]] == [0, 1]
    assert (document["object"], document["model"]) == ("list", "model-a")
    assert document["usage"]["prompt_tokens"] == (2 if api == "infinity" else 3)
    assert (fake.seen[0].path, fake.seen[0].document) == (path, sent)
    coded = (await post(gateway, "/v1/embeddings", {**EMBED, "input": "one", "encoding_format": "base64"})).json()
    assert list(struct.unpack("<4f", base64.b64decode(coded["data"][0]["embedding"]))) == vector("one", 4)


@pytest.mark.parametrize(("api", "behave"), [("tei", tei(is_reranker=True)), ("infinity", infinity("model-a"))])
async def test_scores_come_in_jinas_shape(helpers: Any, api: str, behave: Behaviour) -> None:
    gateway, (fake,) = await helpers("reranking", (api, behave))
    answer = await post(gateway, "/v1/rerank", {**RERANK, "top_n": 2, "return_documents": True})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"] == [
        {"index": 1, "relevance_score": score("ccc"), "document": {"text": "ccc"}},
        {"index": 2, "relevance_score": score("bb"), "document": {"text": "bb"}},
    ]
    assert answer.json()["usage"]["total_tokens"] == 3
    assert fake.seen[0].path == "/rerank"
    expected = {"texts": RERANK["documents"], "truncate": True} if api == "tei" else {"documents": RERANK["documents"]}
    assert fake.seen[0].document == {"model": "model-a", "query": "q", **expected}


@pytest.mark.parametrize(
    ("api", "behave"), [("tei", tei()), ("ollama", ollama("model-a")), ("infinity", infinity("model-a", length=8))]
)
async def test_a_length_that_was_asked_for_is_what_comes_or_nothing(helpers: Any, api: str, behave: Behaviour) -> None:
    """Infinity takes `dimensions` and gives what its model has: that reaches nobody."""
    gateway, (fake,) = await helpers("embedding", (api, behave))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "dimensions": 4})
    assert fake.seen[0].document["dimensions"] == 4
    if api == "infinity":
        assert answer.status_code == 503
        assert "vectors of 8 numbers, 4 are wanted" in answer.json()["error"]["message"]
    else:
        assert {len(item["embedding"]) for item in answer.json()["data"]} == {4}


@pytest.mark.parametrize(("api", "behave"), [("tei", tei()), ("ollama", ollama("model-a"))])
async def test_a_text_is_cut_only_for_who_asks_for_it(helpers: Any, api: str, behave: Behaviour) -> None:
    gateway, _ = await helpers("embedding", (api, behave), ("openai", embeds(4)))
    refused = await post(gateway, "/v1/embeddings", {**EMBED, "input": LONG})
    assert (refused.status_code, refused.headers["x-orchestrate-endpoint"]) == (400, "a")
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "must have less than 512" in refused.text or "exceeds the context length" in refused.text
    cut = await post(gateway, "/v1/embeddings", {**EMBED, "input": LONG, "truncate": True})
    assert (cut.status_code, cut.headers["x-orchestrate-endpoint"]) == (200, "a")


@pytest.mark.parametrize(
    ("api", "behave", "body"),
    [
        ("infinity", infinity("model-a"), {"input": [1, 2, 3]}),
        ("infinity", infinity("model-a"), {"modality": "image"}),
        ("infinity", infinity("model-a"), {"truncate": False}),
        ("ollama", ollama("model-a"), {"input": [[1, 2], [3]]}),
        ("tei", tei(), {"modality": "image"}),
    ],
)
async def test_what_a_server_cannot_do_is_left_to_another_one_or_refused(
    helpers: Any, api: str, behave: Behaviour, body: dict[str, Any]
) -> None:
    gateway, (first, _) = await helpers("embedding", (api, behave), ("openai", embeds(4)))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, **body})
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    gateway.document["roles"]["embedding"]["endpoints"].pop("b")
    await gateway.reload(gateway.document)
    refused = await post(gateway, "/v1/embeddings", {**EMBED, **body})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(body)))
    assert not first.seen


@pytest.mark.parametrize(
    ("api", "behave"),
    [
        ("tei", tei(is_reranker=True)),  # 424: its model makes no vectors
        ("tei", refuses(429, {"error": "Model is overloaded", "error_type": "Overloaded"})),
        ("infinity", infinity("other")),  # 400: it has not got the model
        ("infinity", infinity("model-a", is_overloaded=True)),
        ("ollama", ollama("other")),
    ],
)
async def test_another_server_answers_where_one_has_trouble(helpers: Any, api: str, behave: Behaviour) -> None:
    gateway, _ = await helpers("embedding", (api, behave), ("openai", embeds(4)))
    answer = await post(gateway, "/v1/embeddings", EMBED)
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")


async def test_infinity_below_a_prefix_is_found_there(helpers: Any) -> None:
    gateway, (fake,) = await helpers("embedding", ("infinity", infinity("model-a", prefix="/v1")))
    gateway.document["helpers"]["a"]["url"] += "/v1"
    await gateway.reload(gateway.document)
    assert (await post(gateway, "/v1/embeddings", EMBED)).status_code == 200
    assert fake.seen[0].path == "/v1/embeddings"


@pytest.mark.parametrize(
    ("api", "behave", "helper"),
    [
        ("tei", tei(), {}),
        ("openai", embeds(4), {"max_batch": 32}),
        ("ollama", ollama("model-a"), {"max_batch": 32}),
        ("infinity", infinity("model-a"), {"max_batch": 32}),
    ],
)
async def test_many_texts_are_sent_in_parts_and_come_back_in_order(
    helpers: Any, api: str, behave: Behaviour, helper: dict[str, Any]
) -> None:
    gateway, (fake,) = await helpers("embedding", (api, behave), helper=helper)
    wanted = texts(70)
    for form in ("float", "base64"):
        answer = await post(gateway, "/v1/embeddings", {**EMBED, "input": wanted, "encoding_format": form})
        assert answer.status_code == 200, answer.text
        found = [item["embedding"] for item in answer.json()["data"]]
        if form == "base64":
            found = [list(struct.unpack("<4f", base64.b64decode(each))) for each in found]
        assert found == [vector(text, 4) for text in wanted]
        assert [item["index"] for item in answer.json()["data"]] == list(range(70))
        assert answer.json()["usage"]["total_tokens"] == (140 if api in ("tei", "ollama") else 70)
        assert answer.headers["x-orchestrate-attempts"] == "1"
    sizes = [len(seen.document.get("inputs") or seen.document["input"]) for seen in fake.seen]
    assert sorted(sizes) == [6, 6, 32, 32, 32, 32]


async def test_large_texts_are_sent_in_parts_that_the_server_takes(helpers: Any) -> None:
    gateway, (fake,) = await helpers("embedding", ("tei", tei(payload=2_000_000)))
    large = [f"{number}" + "ä" * 400_000 for number in range(4)]
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "input": large})
    assert answer.status_code == 200, answer.text
    assert [item["embedding"] for item in answer.json()["data"]] == [vector(text, 4) for text in large]
    assert len(fake.seen) == 2


async def test_many_documents_are_ranked_in_parts_as_one(helpers: Any) -> None:
    gateway, (fake,) = await helpers("reranking", ("tei", tei(is_reranker=True)), fallback="skip")
    documents = ["x" * ((number * 37) % 101 + 1) for number in range(80)]
    body = {**RERANK, "documents": documents, "top_n": 5, "return_documents": True}
    answer = await post(gateway, "/v1/rerank", body)
    assert answer.status_code == 200, answer.text
    best = sorted(range(80), key=lambda index: -len(documents[index]))[:5]
    assert [(each["index"], each["document"]["text"]) for each in answer.json()["results"]] == [
        (index, documents[index]) for index in best
    ]
    assert answer.json()["usage"]["total_tokens"] == 80
    assert sorted(len(seen.document["texts"]) for seen in fake.seen) == [16, 32, 32]


def failing_after(count: int, behave: Behaviour, then: Behaviour) -> Behaviour:
    """Answer so many requests in one way, and all others in another."""
    begun = 0

    async def one(exchange: Exchange) -> None:
        nonlocal begun
        begun += 1
        await (behave if begun <= count else then)(exchange)

    return one


@pytest.mark.parametrize(
    "then", [refuses(500), tei(length=3), stalls, refuses(424, {"error": "Inference failed", "error_type": "Backend"})]
)
async def test_one_part_that_fails_sends_the_whole_request_to_another_server(helpers: Any, then: Behaviour) -> None:
    gateway, (first, second) = await helpers("embedding", ("tei", failing_after(2, tei(), then)), ("openai", embeds(4)))
    gateway.document["roles"]["embedding"]["endpoints"]["a"]["timeout_s"] = 1
    await gateway.reload(gateway.document)
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "input": texts(100)})
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert answer.headers["x-orchestrate-attempts"] == "2"
    assert [item["embedding"] for item in answer.json()["data"]] == [vector(text, 4) for text in texts(100)]
    assert len(second.seen) == 1 and first.seen
    assert gateway.standing("a").in_flight == 0


async def test_a_part_that_is_refused_is_told_to_the_client_once(helpers: Any) -> None:
    gateway, (_, second) = await helpers("embedding", ("tei", tei()), ("openai", embeds(4)))
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "input": [*texts(40), LONG]})
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (400, "a")
    assert "must have less than 512 tokens" in answer.json()["error"]["message"]
    assert not second.seen


@pytest.mark.parametrize(("limits", "most"), [({}, AT_ONCE), ({"limits": {"max_in_flight": 1}}, 1)])
async def test_the_parts_of_a_request_do_not_shut_others_out(helpers: Any, limits: dict[str, Any], most: int) -> None:
    at_once: list[int] = []
    open_now = 0

    async def slowly(exchange: Exchange) -> None:
        nonlocal open_now
        open_now += 1
        at_once.append(open_now)
        await asyncio.sleep(0.02)
        open_now -= 1
        await tei()(exchange)

    gateway, (fake,) = await helpers("embedding", ("tei", slowly), **limits)
    answer = await post(gateway, "/v1/embeddings", {**EMBED, "input": texts(320)})
    assert answer.status_code == 200
    assert len(fake.seen) == 10 and max(at_once) <= most


async def test_a_client_that_leaves_ends_every_part(helpers: Any) -> None:
    gateway, (fake,) = await helpers("embedding", ("tei", stalls))
    asking = asyncio.create_task(post(gateway, "/v1/embeddings", {**EMBED, "input": texts(100)}))
    await until(lambda: len(fake.seen) == AT_ONCE, what="the parts are on their way")
    asking.cancel()
    await until(lambda: all(seen.was_cut.is_set() for seen in fake.seen), what="the parts are ended")
    await until(lambda: gateway.in_flight == 0, what="the place is free")
    assert len(fake.seen) == AT_ONCE


SOON = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1, "max_reset_timeout_s": 0.1}}


@pytest.mark.parametrize(
    ("role", "api", "behave", "path"),
    [
        ("embedding", "tei", tei(), "/embed"),
        ("reranking", "tei", tei(is_reranker=True), "/rerank"),
        ("embedding", "infinity", infinity("model-a"), "/embeddings"),
        ("reranking", "infinity", infinity("model-a"), "/rerank"),
        ("embedding", "ollama", ollama("model-a"), "/api/embed"),
    ],
)
async def test_a_probe_speaks_the_servers_own_language(
    helpers: Any, monkeypatch: pytest.MonkeyPatch, role: str, api: str, behave: Behaviour, path: str
) -> None:
    monkeypatch.setattr(prober, "PROBE_S", 5.0)
    gateway, (fake,) = await helpers(role, (api, refuses(500)), **SOON)
    asked = ("/v1/embeddings", EMBED) if role == "embedding" else ("/v1/rerank", RERANK)
    await post(gateway, *asked)
    assert not isinstance(gateway.standing("a").breaker, Closed)
    fake.behave = behave
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed), what="the probe closes the breaker")
    assert {seen.path for seen in fake.seen} == {path}


async def test_stock_mlx_lm_server_as_a_helper_is_asked_for_its_only_model_and_for_streams(helpers: Any) -> None:
    gateway, (fake,) = await helpers("chat", ("mlx-lm-server", answers(words=3)))
    whole = await post(gateway, "/v1/chat/completions", {**CHAT, "user": "me"})
    assert whole.json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
    streamed = await post(gateway, "/v1/chat/completions", STREAM)
    assert words_of(streamed.text) == ["w0", "w1", "w2"]
    assert [seen.document["model"] for seen in fake.seen] == ["default_model"] * 2
    assert all(seen.document["stream"] is True and "user" not in seen.document for seen in fake.seen)
    refused = await post(gateway, "/v1/chat/completions", {**CHAT, "logprobs": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")


async def test_chat_of_ollama_passes_as_it_came(helpers: Any) -> None:
    gateway, (fake,) = await helpers("chat", ("ollama", ollama("model-a")))
    answer = await post(gateway, "/v1/chat/completions", {**CHAT, "keep_alive": "5m"})
    assert answer.status_code == 200
    assert fake.seen[0].document == {**CHAT, "model": "model-a", "keep_alive": "5m"}
