"""Ollama's API through a gateway: every path, stream and error, as its clients send and read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.keys import KeysAt
from runtime.gateway.facts.known import Facts
from tests.fakes.encoders import embeds
from tests.fakes.upstream import DONE, FINISH, ROLE, Exchange, FakeUpstream, answers, event, refuses, streams, word
from tests.runtime.gateway.harness import LocalGateway, local_gateway, stack_document

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "chat", "messages": USER}
MANAGEMENT = [
    *(("POST", f"/api/{what}") for what in ("pull", "push", "create", "copy", "blobs/sha256:abc")),
    ("DELETE", "/api/delete"),
]


@pytest.fixture
async def served(lab: Any) -> AsyncIterator[tuple[LocalGateway, FakeUpstream, httpx.AsyncClient]]:
    """A gateway with one good endpoint, a body limit of 64 KiB, and a client."""
    gateway, (fake,) = await lab(answers(), gateway={"body_limit_mib": 0.0625})
    async with gateway.client() as client:
        yield gateway, fake, client


Served = tuple[LocalGateway, FakeUpstream, httpx.AsyncClient]


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the lines of a stream."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    return [json.loads(line) for line in answer.text.splitlines()]


def error_of(answer: httpx.Response, status: int) -> str:
    """Check the shape that every error has, and return its text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-orchestrate-request-id"]
    document = answer.json()
    assert set(document) == {"error"}
    assert isinstance(document["error"], str)
    return str(document["error"])


async def test_the_root_says_what_ollamas_clients_look_for_and_has_a_page_for_browsers(served: Served) -> None:
    _, _, client = served
    for accept in ("*/*", "application/json"):
        answer = await client.get("/", headers={"accept": accept})
        assert (answer.status_code, answer.text) == (200, "Ollama is running")
        assert answer.headers["content-type"].startswith("text/plain")
    head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    page = await client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "accept" in page.headers["vary"]


async def test_the_version_is_one_that_clients_accept(served: Served) -> None:
    _, _, client = served
    version = (await client.get("/api/version")).json()["version"]
    assert tuple(int(part) for part in version.split(".")) >= (0, 6, 4)
    assert (await client.head("/api/version")).status_code == 200


async def test_a_chat_streams_unless_it_is_told_not_to(served: Served) -> None:
    _, fake, client = served
    for asked in ("chat", "chat:latest"):
        lines = lines_of(await client.post("/api/chat", json={**CHAT, "model": asked}))
        assert [line["message"]["content"] for line in lines] == ["w0 ", "w1 ", "w2 ", ""]
        assert [line["done"] for line in lines] == [False, False, False, True]
        assert {line["model"] for line in lines} == {asked}, "the name is echoed as it was asked"
        assert all(datetime.fromisoformat(line["created_at"]).tzinfo is not None for line in lines)
        last = lines[-1]
        assert last["done_reason"] == "stop"
        assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] - 2 > 0
        assert fake.seen[-1].path == "/v1/chat/completions"
        assert fake.seen[-1].document["stream_options"] == {"include_usage": True}
        assert fake.seen[-1].document["model"] == "model-a"
    whole = await client.post("/api/chat", json={**CHAT, "stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.headers["x-orchestrate-attempts"] == "1"
    assert whole.json()["message"] == {"role": "assistant", "content": "hello"}
    assert (whole.json()["prompt_eval_count"], whole.json()["eval_count"]) == (3, 5)


async def test_a_prompt_goes_to_the_chat_or_as_it_is(served: Served) -> None:
    _, fake, client = served
    lines = lines_of(await client.post("/api/generate", json={"model": "chat", "prompt": "hi", "system": "s"}))
    assert "".join(line["response"] for line in lines) == "w0 w1 w2 "
    assert [message["role"] for message in fake.seen[-1].document["messages"]] == ["system", "user"]
    raw = {"model": "chat", "prompt": "hi", "raw": True, "stream": False}
    assert (await client.post("/api/generate", json=raw)).json()["response"] == "hello"
    assert (fake.seen[-1].path, fake.seen[-1].document["prompt"]) == ("/v1/completions", "hi")


async def test_a_model_that_is_there_already_need_not_be_loaded(served: Served) -> None:
    _, fake, client = served
    for path, key in (("/api/chat", "message"), ("/api/generate", "response")):
        answer = (await client.post(path, json={"model": "chat"})).json()
        assert (answer["done"], answer["done_reason"], key in answer) == (True, "load", True)
        answer = (await client.post(path, json={"model": "chat", "keep_alive": 0})).json()
        assert answer["done_reason"] == "unload"
    assert fake.seen == []


async def test_a_model_that_is_not_in_memory_is_brought_there_by_a_request(served: Served) -> None:
    gateway, fake, client = served
    facts, target = gateway.gateway.services.facts, next(gateway.gateway.services.live.table.targets())  # type: ignore[union-attr]
    facts.note(target.identity, Facts(observed_at=0.0, is_loaded=False))
    for path in ("/api/chat", "/api/generate"):
        answer = (await client.post(path, json={"model": "chat:latest"})).json()
        assert (answer["model"], answer["done_reason"]) == ("chat:latest", "load")
        assert fake.seen[-1].document["max_tokens"] == 1
    assert len(fake.seen) == 2
    await client.post("/api/chat", json={"model": "chat", "keep_alive": 0})
    facts.note(target.identity, Facts(observed_at=0.0, is_loaded=True))
    await client.post("/api/chat", json={"model": "chat"})
    assert len(fake.seen) == 2
    facts.note(target.identity, Facts(observed_at=0.0, is_loaded=False))
    fake.behave = refuses(400, {"error": {"message": "there is no room", "type": "t"}})
    assert error_of(await client.post("/api/chat", json={"model": "chat"}), 400) == "there is no room"


async def test_a_request_waits_for_a_load_unless_it_says_otherwise(served: Served) -> None:
    _, fake, client = served

    async def loads(exchange: Exchange) -> None:
        """Answer only who waits, as a worker does whose model is not in memory."""
        if "prefer" in exchange.seen.headers:
            await answers()(exchange)
        else:
            error = {"message": "It is loading.", "type": "server_error", "param": None, "code": "model_loading"}
            await exchange.answer(503, {"error": error, "loading": {"phase": "loading"}}, retry_after="30")

    fake.behave = loads
    assert lines_of(await client.post("/api/chat", json=CHAT))[-1]["done"] is True
    assert fake.seen[-1].headers["prefer"].startswith("wait=")
    hasty = await client.post("/api/chat", json=CHAT, headers={"prefer": "wait=0"})
    assert (hasty.status_code, hasty.json()["loading"]["phase"]) == (503, "loading")


async def test_what_manages_models_is_refused_with_the_reason(served: Served) -> None:
    _, fake, client = served
    for method, path in MANAGEMENT:
        answer = await client.request(method, path, json={"model": "chat", "stream": True})
        assert "managed by the stack files" in error_of(answer, 403)
    assert (await client.head("/api/blobs/sha256:abc")).status_code == 403
    large = await client.post("/api/blobs/sha256:abc", content=b"x" * 300_000)
    assert "managed by the stack files" in error_of(large, 403)
    assert fake.seen == []


async def test_every_error_is_a_text(served: Served) -> None:
    _, fake, client = served
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"):
        assert "not valid JSON" in error_of(await client.post(path, content=b'{"model": '), 400)
        assert "UTF-8" in error_of(await client.post(path, content=b'{"model": "\xff"}'), 400)
        assert "'model'" in error_of(await client.post(path, json={"prompt": "x"}), 400)
        assert "'model'" in error_of(await client.post(path, json={"model": 3}), 400)
        assert "JSON object" in error_of(await client.post(path, json=[1]), 400)
        assert "levels deep" in error_of(
            await client.post(path, content=b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}"), 400
        )
        missing = await client.post(path, json={"model": "nobody", "prompt": "x", "input": "x", "messages": USER})
        assert "model 'nobody' not found" in error_of(missing, 404)
        assert "larger than" in error_of(await client.post(path, content=b"x" * 200_000), 413)
        wrong = await client.get(path)
        assert "GET" in error_of(wrong, 405)
        assert "POST" in wrong.headers["allow"]
    assert error_of(await client.get("/api/nothing"), 404)
    assert error_of(await client.post("/api/tags"), 405)
    bad = await client.post("/api/chat", json={**CHAT, "options": {"temperature": "hot"}})
    assert "'options.temperature'" in error_of(bad, 400)
    wrong_kind = error_of(await client.post("/api/embed", json={"model": "chat", "input": "x"}), 400)
    assert "POST /api/chat" in wrong_kind
    assert fake.seen == []


async def test_a_key_is_asked_for_in_its_words_too(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as fake:
        key = KeysAt(tmp_path, "keys.yaml").add(("inference",))
        document = stack_document({"a": fake.url}, gateway={"auth": {"keys_file": "keys.yaml"}})
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            for path in ("/api/chat", "/api/pull"):
                answer = await client.post(path, json=CHAT)
                assert "key" in error_of(answer, 401)
                assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (await client.get("/api/version")).status_code == 200
            assert (await client.get("/")).text == "Ollama is running"
            bearer = {"authorization": f"Bearer {key.text}"}
            assert lines_of(await client.post("/api/chat", json=CHAT, headers=bearer))[-1]["done"] is True


async def test_a_key_for_some_names_learns_of_no_others(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as fake:
        key = KeysAt(tmp_path, "keys.yaml").add(("inference",), roles=("chat",))
        document = stack_document({"a": fake.url}, gateway={"auth": {"keys_file": "keys.yaml"}})
        bearer = {"authorization": f"Bearer {key.text}"}
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            listed = (await client.get("/api/tags", headers=bearer)).json()["models"]
            assert [model["name"] for model in listed] == ["chat:latest"]
            for path in ("/api/chat", "/api/generate", "/api/embed", "/api/show"):
                for there, nowhere in (("model-a", "model-z"), ("model-a:latest", "model-z:latest")):
                    said = [
                        error_of(await client.post(path, json={**CHAT, "model": name}, headers=bearer), 404)
                        for name in (there, nowhere)
                    ]
                    assert said[0] == said[1].replace(nowhere, there), "whether it exists makes no difference"


async def test_a_key_that_is_revoked_ends_a_stream_with_a_line(tmp_path: Path) -> None:
    async with FakeUpstream(answers(words=100_000, pause_s=0.01)) as fake:
        keys = KeysAt(tmp_path, "keys.yaml")
        key = keys.add(("inference",), name="goes")
        document = stack_document({"a": fake.url}, gateway={"auth": {"keys_file": "keys.yaml"}})
        bearer = {"authorization": f"Bearer {key.text}"}
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            async with client.stream("POST", "/api/chat", json=CHAT, headers=bearer) as answer:
                lines = answer.aiter_lines()
                assert json.loads(await anext(lines))["done"] is False
                keys.revoke("goes")
                await gateway.reload()
                rest = [json.loads(line) async for line in lines]
    assert rest[-1] == {"error": "The key of this request has been revoked."}
    assert not any(line.get("done") for line in rest)


async def test_an_endpoints_refusal_is_said_in_its_words(served: Served) -> None:
    _, fake, client = served
    fake.behave = refuses(400, {"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}})
    for more in ({}, {"stream": False}):
        assert "too long" in error_of(await client.post("/api/chat", json={**CHAT, **more}), 400)


async def test_a_load_under_way_is_told_beside_the_error_and_when_to_come_back(served: Served) -> None:
    _, fake, client = served
    error = {"message": "The model is loading.", "type": "server_error", "code": "model_loading", "param": None}
    fake.behave = refuses(503, {"error": error, "loading": {"phase": "loading", "progress": 0.5, "eta_s": 3.0}})
    answer = await client.post("/api/chat", json=CHAT)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["loading"]["progress"] == 0.5
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("then", ["reset", "hang up", "end"])
async def test_a_stream_that_breaks_off_ends_with_an_error(served: Served, then: str) -> None:
    _, fake, client = served
    fake.behave = streams(ROLE, word(0), word(1), then=then)
    lines = lines_of(await client.post("/api/chat", json=CHAT))
    assert [line["message"]["content"] for line in lines[:-1]] == ["w0 ", "w1 "]
    assert set(lines[-1]) == {"error"}
    assert "broke off" in lines[-1]["error"]


async def test_an_answer_is_not_begun_anew_in_the_middle_of_lines(lab: Any) -> None:
    gateway, (first, second) = await lab(streams(ROLE, word(0), then="reset"), answers(), chat={"midstream": "restart"})
    async with gateway.client() as client:
        lines = lines_of(await client.post("/api/chat", json=CHAT))
    assert "error" in lines[-1]
    assert second.seen == []
    assert first.seen != []


async def test_an_event_that_makes_no_sense_ends_the_stream_with_an_error(served: Served) -> None:
    _, fake, client = served
    odd = event({"choices": [{"index": 0, "delta": {"content": {"a": 1}}}]})
    fake.behave = streams(ROLE, word(0), odd, word(1), FINISH, DONE)
    lines = lines_of(await client.post("/api/chat", json=CHAT))
    assert "error" in lines[-1]
    assert all(not line["done"] for line in lines[:-1])


async def test_a_whole_answer_that_makes_no_sense_is_502(served: Served) -> None:
    _, fake, client = served
    fake.behave = refuses(200, {"choices": [{"message": {"content": 3}}]})
    assert "cannot be read" in error_of(await client.post("/api/chat", json={**CHAT, "stream": False}), 502)


async def test_a_request_is_noted_as_any_other(served: Served) -> None:
    _, _, client = served
    given = {"x-request-id": "mine-1"}
    answer = await client.post("/api/chat", json=CHAT, headers=given)
    assert answer.headers["x-orchestrate-request-id"] == "mine-1"
    receipt = (await client.get("/admin/receipts/mine-1")).json()
    assert (receipt["model"], receipt["endpoint"], receipt["outcome"], receipt["is_stream"]) == (
        "chat",
        "a",
        "ok",
        True,
    )


async def test_listings_tell_what_is_known_of_the_models(served: Served) -> None:
    gateway, _, client = served
    target = next(gateway.gateway.services.live.table.targets())  # type: ignore[union-attr]
    facts = Facts(
        source="llama.cpp",
        observed_at=0.0,
        context_length=4096,
        can=frozenset({"completion", "tools"}),
        cannot=frozenset({"thinking"}),
        architecture="llama",
        is_loaded=True,
        size_loaded=7,
    )
    assert (await client.get("/api/ps")).json() == {"models": []}
    gateway.gateway.services.facts.note(target.identity, facts)
    listed = (await client.get("/api/tags")).json()["models"]
    assert {model["name"] for model in listed} == {"chat:latest", "model-a:latest"}
    assert all(model["capabilities"] == ["completion", "tools"] for model in listed)
    (loaded,) = (await client.get("/api/ps")).json()["models"]
    assert (loaded["name"], loaded["size"], loaded["context_length"]) == ("model-a:latest", 7, 4096)
    for asked in ({"model": "chat"}, {"name": "chat:latest"}, {"model": "model-a", "verbose": True}):
        shown = (await client.post("/api/show", json=asked)).json()
        assert shown["model_info"]["llama.context_length"] == 4096
        assert shown["capabilities"] == ["completion", "tools"]
    refused = await client.post("/api/chat", json={**CHAT, "think": True})
    assert "does not support thinking" in error_of(refused, 400)


def embedding_stack(url: str) -> dict[str, Any]:
    return {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "helpers": {"a": {"url": url, "models": {"vectors": {"kind": "embedding"}}}},
        "roles": {"embed": {"endpoints": {"a": {"helper": "a", "model": "vectors"}}}},
        "gateway": {"node": "here"},
    }


async def test_vectors_by_either_path(tmp_path: Path) -> None:
    async with FakeUpstream(embeds(4)) as fake:
        async with local_gateway(tmp_path, embedding_stack(fake.url)) as gateway, gateway.client() as client:
            many = await client.post("/api/embed", json={"model": "vectors:latest", "input": ["a", "b"]})
            assert many.status_code == 200, many.text
            found = many.json()
            assert found["model"] == "vectors:latest"
            assert [len(vector) for vector in found["embeddings"]] == [4, 4]
            assert found["embeddings"][0] != found["embeddings"][1]
            assert found["prompt_eval_count"] == 2
            assert found["total_duration"] > 0
            one = (await client.post("/api/embed", json={"model": "vectors", "input": "a"})).json()
            assert one["embeddings"] == found["embeddings"][:1]
            blank = (await client.post("/api/embed", json={"model": "vectors", "input": ["", "a"]})).json()
            assert len(blank["embeddings"]) == 2 and blank["embeddings"][1:] == one["embeddings"]
            older = await client.post("/api/embeddings", json={"model": "vectors", "prompt": "a"})
            assert older.json() == {"embedding": one["embeddings"][0]}
            seen = len(fake.seen)
            assert (await client.post("/api/embed", json={"model": "vectors", "input": []})).json() == {
                "model": "vectors",
                "embeddings": [],
            }
            nothing = await client.post("/api/embeddings", json={"model": "vectors", "prompt": ""})
            assert nothing.json() == {"embedding": []}
            assert len(fake.seen) == seen
            chat = await client.post("/api/chat", json={"model": "vectors", "messages": USER})
            assert "POST /api/embed" in error_of(chat, 400)
