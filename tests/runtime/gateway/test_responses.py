"""`POST /v1/responses` through a gateway: whole, streamed, with tools, and every kind of error."""

from __future__ import annotations

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
    chunk_document,
    event,
    refuses,
    streams,
    word,
)
from tests.runtime.gateway.harness import LocalGateway
from tests.runtime.gateway.protocols.test_responses_answers import check, read

PATH = "/v1/responses"
ASKED = {"model": "chat", "input": "hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = event(
    chunk_document({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}]})
)


async def post(gateway: LocalGateway, body: dict[str, Any]) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(PATH, json=body)


async def test_a_whole_response(lab: Any) -> None:
    gateway, (fake,) = await lab(answers("hello"))
    answer = await post(gateway, ASKED)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    document = answer.json()
    assert document["object"] == "response" and document["status"] == "completed" and document["model"] == "chat"
    assert document["output"][0]["content"][0]["text"] == "hello"
    assert document["usage"]["input_tokens"] == 3 and document["usage"]["output_tokens"] == 5
    sent = fake.seen[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.document == {"model": "model-a", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_streamed_response_with_a_tool(lab: Any) -> None:
    gateway, (fake,) = await lab(streams(ROLE, word(0), CALL, FINISH, DONE))
    answer = await post(gateway, {**ASKED, "tools": [TOOL], "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    response = check(read(answer.content))
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["usage"]["estimated"] is True, "the endpoint did not say"
    assert response["usage"]["output_tokens"] > 0
    assert fake.seen[0].document["stream_options"] == {"include_usage": True}
    assert b"[DONE]" not in answer.content


async def test_every_response_has_an_id_of_its_own(lab: Any) -> None:
    gateway, _ = await lab(answers())
    ids = {(await post(gateway, ASKED)).json()["id"] for _ in range(3)}
    assert len(ids) == 3 and all(each.startswith("resp_") for each in ids)


@pytest.mark.parametrize("then", ["reset", "hang up"])
async def test_a_stream_that_breaks_off_ends_as_a_failure(lab: Any, then: str) -> None:
    gateway, _ = await lab(streams(ROLE, word(0), then=then))
    answer = await post(gateway, {**ASKED, "stream": True})
    response = check(read(answer.content))
    assert response["status"] == "failed" and "broke off" in response["error"]["message"]


async def test_another_endpoint_takes_over_unseen(lab: Any) -> None:
    gateway, _ = await lab(streams(ROLE, then="reset"), answers(words=2))
    answer = await post(gateway, {**ASKED, "stream": True})
    response = check(read(answer.content))
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "w0 w1 "


LONG = {"error": {"message": "This model's maximum context length is 9 tokens", "type": "BadRequestError", "code": 400}}


@pytest.mark.parametrize(
    ("behave", "body", "status", "code", "param"),
    [
        (answers(), {**ASKED, "previous_response_id": "resp_1"}, 400, "unsupported_parameter", "previous_response_id"),
        (answers(), {**ASKED, "model": "nobody"}, 404, "model_not_found", "model"),
        (answers(), {"model": "chat"}, 400, "invalid_value", "input"),
        (refuses(400, LONG), ASKED, 400, "context_length_exceeded", None),
        (refuses(400, LONG), {**ASKED, "stream": True}, 400, "context_length_exceeded", None),
        (refuses(500), ASKED, 503, "no_endpoint_available", None),
    ],
)
async def test_errors_have_openais_shape(
    lab: Any, behave: Behaviour, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    gateway, _ = await lab(behave)
    answer = await post(gateway, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)


async def test_what_an_endpoint_refuses_is_called_as_the_client_calls_it(lab: Any) -> None:
    error = {"type": "invalid_request_error", "code": "unsupported_value"}
    gateway, (fake,) = await lab(answers())
    for param, name in (("response_format", "text.format"), ("messages[3].content[0]", "input"), ("tools", "tools")):
        fake.behave = refuses(400, {"error": {**error, "message": f"'{param}' is not supported", "param": param}})
        answer = await post(gateway, ASKED)
        assert answer.status_code == 400
        assert answer.json()["error"] == {**error, "message": f"'{name}' is not supported", "param": name}


async def test_what_needs_a_response_that_was_kept_is_refused_with_the_reason(lab: Any) -> None:
    gateway, _ = await lab(answers())
    async with gateway.client() as client:
        for method, path in (
            ("GET", "/resp_1"),
            ("DELETE", "/resp_1"),
            ("POST", "/resp_1/cancel"),
            ("GET", "/resp_1/input_items"),
        ):
            answer = await client.request(method, PATH + path)
            assert answer.status_code == 404, answer.text
            error = answer.json()["error"]
            assert error["code"] == "response_not_found" and "not kept" in error["message"]
        wrong = await client.get(PATH)
        assert wrong.status_code == 405 and wrong.json()["error"]["code"] == "method_not_allowed"


async def test_malformed_bodies_are_refused_in_shape(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    async with gateway.client() as client:
        for raw in (b"", b"{", b"[]", b'{"model": "\xff"}', b'{"a":' * 1000 + b"1" + b"}" * 1000):
            answer = await client.post(PATH, content=raw)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "invalid_json"
        many = {**ASKED, "tools": [{**TOOL, "name": f"f{index}"} for index in range(10_000)]}
        answer = await client.post(PATH, content=json.dumps(many).encode())
        assert answer.status_code == 200
    assert len(fake.seen[0].document["tools"]) == 10_000
