"""The Anthropic API over HTTP: messages, streams, counts and errors through a whole gateway."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from runtime.gateway.facts.known import Facts
from tests.fakes.upstream import DONE, FINISH, ROLE, Behaviour, Exchange, answers, event, word
from tests.runtime.gateway.harness import LocalGateway

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
ASKED = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
COUNTED = {key: value for key, value in ASKED.items() if key != "max_tokens"}
HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta-2025-01-01"}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def assert_error(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert document["type"] == "error"
    assert document["error"]["type"] == kind
    assert document["request_id"] == answer.headers["request-id"]
    message: str = document["error"]["message"]
    assert message
    return message


def by_path(**behaviours: Callable[[dict[str, Any]], tuple[int, Any]]) -> Behaviour:
    """Answer by path, `/` written as `_`; any other path is 404."""

    async def behave(exchange: Exchange) -> None:
        made = behaviours.get(exchange.seen.path.strip("/").replace("/", "_").replace("-", "_"))
        status, body = (404, {"error": "Not Found"}) if made is None else made(exchange.seen.document)
        await exchange.answer(status, body)

    return behave


async def test_a_message_and_a_stream(lab: Any) -> None:
    gateway, (fake,) = await lab(answers("hello", words=2))
    async with gateway.client() as client:
        whole = await client.post(PATH, json=ASKED, headers=HEADERS)
        assert whole.status_code == 200
        message = whole.json()
        assert message["content"] == [{"type": "text", "text": "hello"}]
        assert message["usage"]["input_tokens"] == 3
        assert message["usage"]["output_tokens"] == 5
        assert whole.headers["x-orchestrate-endpoint"] == "a"
        assert whole.headers["request-id"] == whole.headers["x-orchestrate-request-id"]
        stream = await client.post(f"{PATH}?beta=true", json={**ASKED, "stream": True}, headers=HEADERS)
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = events_of(stream.text)
    assert [event["type"] for event in events] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert [seen.path for seen in fake.seen] == ["/v1/chat/completions"] * 2
    assert fake.seen[0].document == {**ASKED, "model": "model-a"}
    assert fake.seen[1].document["stream_options"] == {"include_usage": True}
    assert message["id"] != events[0]["message"]["id"]


async def test_a_stream_that_breaks_off_ends_with_an_error_event(lab: Any) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(ROLE + word(0))
        exchange.reset()

    gateway, _ = await lab(breaks)
    async with gateway.client() as client:
        events = events_of((await client.post(PATH, json={**ASKED, "stream": True})).text)
    assert [event["type"] for event in events][-2:] == ["content_block_delta", "error"]
    assert events[-1]["error"]["type"] == "api_error"


async def test_calls_that_make_no_sense_end_a_stream_with_an_error_event(lab: Any) -> None:
    def call(index: int, **function: str) -> bytes:
        piece = {"index": index, "id": f"c{index}", "function": function}
        return event({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]})

    async def tangles(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for sent in (call(0, name="f", arguments="{"), call(1, name="g", arguments="{"), call(0, arguments="}")):
            await exchange.chunk(sent)
        await exchange.chunk(FINISH + DONE)
        await exchange.end_stream()

    gateway, _ = await lab(tangles)
    async with gateway.client() as client:
        events = events_of((await client.post(PATH, json={**ASKED, "stream": True})).text)
    assert events[-1]["type"] == "error"
    assert all(event["type"] != "message_stop" for event in events)


async def test_errors_have_anthropics_shape_whoever_raises_them(lab: Any) -> None:
    async def overflows(exchange: Exchange) -> None:
        error = {"message": "maximum context length is 8 tokens", "type": "invalid_request_error", "code": None}
        await exchange.answer(400, {"error": error})

    gateway, (fake,) = await lab(overflows)
    async with gateway.client() as client:
        for path in (PATH, COUNT):
            assert_error(await client.post(path, content=b"{"), 400, "invalid_request_error")
            assert_error(await client.post(path, json={**ASKED, "model": "nobody"}), 404, "not_found_error")
            assert_error(await client.get(path), 405, "invalid_request_error")
        assert_error(await client.post(f"{PATH}/batches", json={}), 404, "not_found_error")
        wrong = {**ASKED, "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]}
        said = assert_error(await client.post(PATH, json=wrong), 400, "invalid_request_error")
        assert "messages[0].content[0].source.type" in said
        assert fake.seen == []
        assert "context length" in assert_error(await client.post(PATH, json=ASKED), 400, "invalid_request_error")
        fake.behave = lambda exchange: exchange.answer(503, {"error": {"message": "loading model"}}, retry_after="7")
        busy = await client.post(PATH, json=ASKED)
        assert_error(busy, 503, "overloaded_error")
        assert int(busy.headers["retry-after"]) > 0


# -- counting ----------------------------------------------------------------------------------------------------------


async def counted(gateway: LocalGateway, **fields: Any) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(COUNT, json={**COUNTED, **fields}, headers=HEADERS)


def recognised(gateway: LocalGateway, source: Any) -> None:
    """Let the gateway have recognised which program serves at its endpoints."""
    services = gateway.gateway.services
    for target in services.live.table.targets():
        services.facts.note(target.identity, Facts(source=source, observed_at=0.0))


@pytest.mark.parametrize("source", ["worker", "vllm"])
async def test_tokens_are_counted_by_the_endpoints_own_tokenizer(lab: Any, source: str) -> None:
    gateway, (fake,) = await lab(by_path(tokenize=lambda _: (200, {"count": 42, "max_model_len": 100, "tokens": []})))
    recognised(gateway, source)
    tool = {"name": "f", "input_schema": {"type": "object"}}
    answer = await counted(gateway, tools=[tool], system="s")
    assert answer.json() == {"input_tokens": 42}
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    (seen,) = fake.seen
    assert seen.path == "/tokenize"
    assert seen.document["model"] == "model-a"
    assert [message["role"] for message in seen.document["messages"]] == ["system", "user"]
    assert seen.document["tools"][0]["function"]["name"] == "f"


async def test_llama_cpp_writes_the_prompt_first_and_cuts_it_then(lab: Any) -> None:
    gateway, (fake,) = await lab(
        by_path(
            apply_template=lambda asked: (200, {"prompt": f"<user>{asked['messages'][0]['content']}"}),
            tokenize=lambda asked: (200, {"tokens": list(range(len(asked["content"])))}),
        )
    )
    recognised(gateway, "llama.cpp")
    assert (await counted(gateway)).json() == {"input_tokens": len("<user>hi")}
    assert [seen.path for seen in fake.seen] == ["/apply-template", "/tokenize"]
    assert fake.seen[1].document["parse_special"] is True


@pytest.mark.parametrize("source", ["", "ollama", "openai", "vllm", "llama.cpp", "worker"])
async def test_where_nobody_can_be_asked_there_is_an_estimate_that_says_so(lab: Any, source: str) -> None:
    gateway, (fake,) = await lab(by_path())
    recognised(gateway, source)
    found = (await counted(gateway, system="a long text " * 100)).json()
    assert found["estimated"] is True
    assert 200 < found["input_tokens"] < 400
    assert len(fake.seen) == (source in ("vllm", "llama.cpp", "worker"))
    assert gateway.counted("a") == (0, 0), "nothing was learnt about the endpoint"


async def test_a_count_goes_on_to_the_next_endpoint_and_leaves_a_receipt(lab: Any) -> None:
    gateway, (first, second) = await lab(
        by_path(tokenize=lambda _: (500, {"error": {"message": "broken"}})),
        by_path(tokenize=lambda _: (200, {"count": 7})),
    )
    recognised(gateway, "worker")
    answer = await counted(gateway)
    assert answer.json() == {"input_tokens": 7}
    assert (len(first.seen), len(second.seen)) == (1, 1)
    assert answer.headers["x-orchestrate-attempts"] == "2"
    async with gateway.client() as client:
        receipt = (await client.get(f"/admin/receipts/{answer.headers['request-id']}")).json()
    assert [attempt["endpoint"] for attempt in receipt["attempts"]] == ["a", "b"]


async def test_what_an_endpoint_refuses_to_count_is_passed_on(lab: Any) -> None:
    error = {"message": "the prompt has at least 99 tokens", "type": "x", "code": "context_length_exceeded"}
    gateway, _ = await lab(by_path(tokenize=lambda _: (400, {"error": error})))
    recognised(gateway, "worker")
    assert "99 tokens" in assert_error(await counted(gateway), 400, "invalid_request_error")


@pytest.mark.parametrize("answer", [{}, [], {"count": "5"}, {"count": -1}, {"count": True}, b"nothing"])
async def test_an_answer_without_a_count_is_a_failure(lab: Any, answer: Any) -> None:
    gateway, _ = await lab(by_path(tokenize=lambda _: (200, answer)))
    recognised(gateway, "worker")
    assert_error(await counted(gateway), 503, "overloaded_error")
    assert gateway.counted("a")[1] == 1
