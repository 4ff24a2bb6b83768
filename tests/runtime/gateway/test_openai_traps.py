"""The traps that OpenAI's clients fall into, one test a clause, over what engines really send."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import httpx
import pytest

from runtime.gateway.errors import cleaned_error, overflow_error
from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    Behaviour,
    Exchange,
    answers,
    chunk_document,
    completion,
    event,
    refuses,
    streams,
    word,
)
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, words_of

CHAT_PATH, TEXT_PATH, EMBED_PATH = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
WITH_USAGE = {**STREAM, "stream_options": {"include_usage": True}}
USAGE = event({**chunk_document({}), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})


async def post(gateway: LocalGateway, body: dict[str, Any], path: str = CHAT_PATH) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(path, json=body)


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the documents of a stream that must end with `[DONE]`."""
    events = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part.startswith("data: ")]
    assert events[-1] == "[DONE]" and "[DONE]" not in events[:-1]
    return [json.loads(each) for each in events[:-1]]


# --- usage in streams


async def test_a_usage_that_was_asked_for_is_the_last_chunk_and_has_no_choices(lab: Any) -> None:
    gateway, (fake,) = await lab(streams(ROLE, word(0), FINISH, USAGE, DONE))
    *others, last = chunks(await post(gateway, WITH_USAGE))
    assert last["choices"] == [] and last["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}
    assert all(each["choices"] and not each.get("usage") for each in others)
    assert fake.seen[0].document["stream_options"] == {"include_usage": True}


async def test_a_usage_that_nobody_asked_for_is_taken_out(lab: Any) -> None:
    # vLLM with --enable-force-include-usage, and proxies, send it to everybody.
    gateway, _ = await lab(streams(ROLE, word(0), word(1) + FINISH + USAGE + DONE))
    options: tuple[dict[str, Any], ...] = ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None})
    for more in options:
        answer = await post(gateway, STREAM | more)
        assert all(each["choices"] for each in chunks(answer))
        assert words_of(answer.text) == ["w0", "w1"]
    async with gateway.client() as client:
        assert "mlx_cluster_tokens_generated_total 6" in (await client.get("/metrics")).text, "and counted here"


async def test_endpoints_are_not_asked_for_more_than_the_client_asked(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    await post(gateway, STREAM)
    assert fake.seen[0].document == {**STREAM, "model": "model-a"}


async def test_a_usage_that_an_endpoint_does_not_report_is_estimated_and_says_so(lab: Any) -> None:
    gateway, _ = await lab(streams(ROLE, *(word(index) for index in range(20)), FINISH, DONE))
    *others, last = chunks(await post(gateway, WITH_USAGE))
    assert last["choices"] == [] and last["usage"]["estimated"] is True
    assert {last["id"], *(each["id"] for each in others)} == {"chatcmpl-1"}
    assert last["object"] == "chat.completion.chunk" and last["model"] == others[0]["model"]
    usage = last["usage"]
    assert usage["prompt_tokens"] > 0 and 15 <= usage["completion_tokens"] <= 25
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_estimate_comes_before_the_end_however_the_endpoint_ends(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    for end in ([FINISH, DONE], [FINISH], [FINISH, b"data: [DONE]"], [FINISH.rstrip()]):
        fake.behave = streams(ROLE, word(0), *end)
        last = chunks(await post(gateway, WITH_USAGE))[-1]
        assert last["choices"] == [] and last["usage"]["estimated"] is True, end


async def test_a_prompt_of_no_tokens_is_estimated(lab: Any) -> None:
    # Ollama says 0 where it had read the prompt before.
    cached = event({**chunk_document({}), "choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 2}})
    gateway, _ = await lab(streams(ROLE, word(0), FINISH, cached, DONE))
    usage = chunks(await post(gateway, WITH_USAGE))[-1]["usage"]
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] == 2 and usage["estimated"] is True


@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH])
async def test_whole_answers_without_usage_get_an_estimate(lab: Any, path: str) -> None:
    gateway, (fake,) = await lab(answers())
    body = CHAT if path == CHAT_PATH else {"model": "chat", "prompt": "once upon a time"}
    whole = completion(path, "hello " * 10)
    del whole["usage"]
    for said in ({}, {"usage": None}, {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}):
        fake.behave = says(whole | said)
        document = (await post(gateway, body, path)).json()
        usage = document["usage"]
        assert usage["estimated"] is True and usage["prompt_tokens"] > 0 and usage["completion_tokens"] == 15
        assert document["choices"] == whole["choices"]


def says(document: dict[str, Any]) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.answer(200, document)

    return behave


async def test_a_usage_that_an_endpoint_reports_is_passed_byte_for_byte(lab: Any) -> None:
    raw = json.dumps(completion(CHAT_PATH, "hi"), indent=1).encode()

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(200, raw)

    gateway, _ = await lab(behave)
    assert (await post(gateway, CHAT)).content == raw


# --- the order of a stream


async def test_the_first_delta_has_the_role_and_the_finish_reason_comes_once(lab: Any) -> None:
    gateway, _ = await lab(answers(words=3))
    found = chunks(await post(gateway, STREAM))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [each["choices"][0]["finish_reason"] for each in found].count("stop") == 1
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({(each["id"], each["created"], each["model"]) for each in found}) == 1


@pytest.mark.parametrize("api", ["ollama", "openai"])
async def test_all_chunks_were_created_once(lab: Any, api: str) -> None:
    # Ollama and llama.cpp stamp every chunk with the time of the chunk.
    pieces = [event(chunk_document({"role": "assistant", "content": f"w{n} "}) | {"created": 10 + n}) for n in range(3)]
    finish = event(chunk_document({}, "stop") | {"created": 99})
    gateway, _ = await lab(streams(*pieces[:2], pieces[2] + finish, DONE))
    gateway.document["helpers"]["a"]["api"] = api
    await gateway.reload(gateway.document)
    found = chunks(await post(gateway, STREAM))
    assert {each["created"] for each in found} == {10}


async def test_text_that_looks_like_a_chunk_is_passed_as_it_is(lab: Any) -> None:
    text = '{"created": 5, "choices": [], "usage": {}} data: [DONE]\n\n[]'
    gateway, _ = await lab(streams(ROLE, event(chunk_document({"content": text})), FINISH, DONE))
    gateway.document["helpers"]["a"]["api"] = "ollama"
    await gateway.reload(gateway.document)
    found = chunks(await post(gateway, STREAM))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in found) == text


async def test_no_event_is_split_nor_held_back(lab: Any) -> None:
    """Every event is written as soon as it is whole, and in one piece, however it came."""
    go_on = asyncio.Event()
    rocket = event(chunk_document({"content": "🚀"})).replace(b"\\ud83d\\ude80", "🚀".encode())
    half = rocket.index("🚀".encode()) + 2

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(ROLE + word(0) + rocket[:half])
        await go_on.wait()
        await exchange.chunk(rocket[half:])
        await exchange.chunk(FINISH + DONE)
        await exchange.end_stream()

    gateway, _ = await lab(behave)
    pieces: list[bytes] = []
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        assert "content-encoding" not in answer.headers
        async for piece in answer.aiter_raw():
            pieces.append(piece)
            # The first word is here while the endpoint still waits.
            go_on.set()
    assert pieces[0].endswith(word(0))
    assert all(piece.decode().endswith("\n\n") for piece in pieces)
    assert b"".join(pieces) == ROLE + word(0) + rocket + FINISH + DONE


async def test_nothing_is_compressed_although_clients_offer_it(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    async with gateway.client() as client:
        answer = await client.post(CHAT_PATH, json=CHAT, headers={"accept-encoding": "gzip, br"})
    assert "content-encoding" not in answer.headers
    assert fake.seen[0].headers["accept-encoding"] == "identity"


# --- errors


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer, whose shape every client relies on."""
    return check_error(answer.json()["error"])


def check_error(error: dict[str, Any]) -> dict[str, Any]:
    """Check an error's shape, and return it."""
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and error["type"]
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error


async def test_every_error_has_openais_shape_on_every_path(lab: Any) -> None:
    gateway, _ = await lab(answers(), gateway={"body_limit_mib": 0.0625})
    async with gateway.client() as client:
        for path, subject in _SUBJECTS.items():
            for answer, status in (
                (await client.get(path), 405),
                (await client.post(path + "/nobody/here"), 404),
                (await client.post(path, content=b"{"), 400),
                (await client.post(path, content=b" " * 70_000), 413),
                (await client.post(path, json={"model": "nobody", **subject}), 404),
            ):
                assert answer.status_code == status, (path, answer.text)
                error_of(answer)


_SUBJECTS: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"messages": CHAT["messages"]},
    TEXT_PATH: {"prompt": "x"},
    EMBED_PATH: {"input": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/rerank": {"query": "q", "documents": ["d"]},
}


ERRORS: dict[str, Any] = {
    "vllm": {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}},
    "llama.cpp": {"error": {"code": 500, "message": "no", "type": "server_error"}},
    "older vllm": {"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400},
    "tei": {"error": "no", "error_type": "Validation"},
    "fastapi": {"detail": [{"loc": ["body"], "msg": "no"}]},
    "odd": {"error": {"message": "no", "type": None, "param": 3, "code": None}},
    "none": "no",
}


@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS)
def test_errors_of_every_engine_are_brought_into_shape(body: object) -> None:
    for status in (400, 401, 404, 409, 422, 429, 500, 502, 503, 529):
        check_error(json.loads(cleaned_error(status, json.dumps(body).encode()))["error"])
    overflow = json.loads(overflow_error(json.dumps(body).encode()))["error"]
    assert check_error(overflow)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_an_error_of_an_engine_has_openais_shape_for_its_client(lab: Any, status: int) -> None:
    gateway, _ = await lab(refuses(status, ERRORS["vllm"]))
    answer = await post(gateway, CHAT)
    assert answer.status_code == (503 if status == 500 else status)
    error_of(answer)


OVERFLOWS: list[tuple[int, dict[str, Any]]] = [
    (400, {"error": {"message": "This model's maximum context length is 16 tokens. However, you requested 40 tokens.",
                     "type": "BadRequestError", "param": None, "code": 400}}),
    (400, {"object": "error", "message": "This model's maximum context length is 16 tokens.", "code": 400}),
    (400, {"error": {"code": 400, "message": "request (40 tokens) exceeds the available context size (16 tokens)",
                     "type": "exceed_context_size_error", "n_prompt_tokens": 40, "n_ctx": 16}}),
    (400, {"error": {"message": "the input length exceeds the context length", "type": "invalid_request_error"}}),
    (500, {"error": "the input length exceeds the context length"}),
    (422, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
           "error_type": "Validation"}),
    (400, {"error": "The number of tokens to keep from the initial prompt is greater than the context length"}),
]  # fmt: skip


async def test_a_prompt_that_is_too_long_has_openais_code_whatever_the_engine_says(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    for status, body in OVERFLOWS:
        fake.behave = refuses(status, body)
        for asked in (CHAT, STREAM):
            answer = await post(gateway, asked)
            assert answer.status_code == 400, body
            assert error_of(answer)["code"] == "context_length_exceeded"


async def test_a_prompt_that_is_too_long_may_be_said_in_the_stream(lab: Any) -> None:
    error = {"error": {"message": "Trying to keep the first 40 tokens when context the overflows.", "code": 400}}
    gateway, _ = await lab(streams(b"event: error\n" + event(error)))
    answer = await post(gateway, STREAM)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"


async def test_texts_of_endpoints_give_nothing_away(lab: Any) -> None:
    text = "no file /srv/models/x at http://10.0.0.7:8080/v1 with Bearer sk-abcdefgh1234"
    gateway, _ = await lab(refuses(400, {"error": {"message": text, "type": "t", "param": None, "code": None}}))
    answer = await post(gateway, CHAT)
    assert error_of(answer)
    assert not any(secret in answer.text for secret in ("/srv", "10.0.0.7", "sk-abc"))


# --- parameters


TOLERATED: list[dict[str, Any]] = [
    {"max_completion_tokens": 5},
    {"max_completion_tokens": 5, "max_tokens": 5},
    {"stop": "x"},
    {"stop": ["x", "y"]},
    {"stop": None},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": False},
    {"logprobs": 3},
    {"top_logprobs": 0},
    {"tools": []},
    {"tools": None, "tool_choice": None, "temperature": None, "stream": None, "stream_options": None, "n": None},
    {"tools": [], "tool_choice": "none"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, "there"]}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": None}, {"role": "user", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
    {"messages": [{"role": "user", "content": "hi", "unknown": [{"deep": {}}], "refusal": None}]},
    *({"unknown": value} for value in (None, True, 1, 1.5, "x", [], [1], {}, {"a": [None]})),
]


async def test_what_openai_tolerates_is_passed_on_as_it_came(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    for more in TOLERATED:
        answer = await post(gateway, CHAT | more)
        assert answer.status_code == 200, answer.text
        assert fake.seen[-1].document == {**CHAT, **more, "model": "model-a"}


async def test_developers_speak_with_the_role_that_every_template_knows(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    messages = [{"role": "developer", "content": "be brief", "name": "d"}, {"role": "user", "content": "ü 🚀"}]
    assert (await post(gateway, {**CHAT, "messages": messages})).status_code == 200
    sent = fake.seen[0].document["messages"]
    assert sent == [{"role": "system", "content": "be brief", "name": "d"}, messages[1]]


TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "g"}}


def parts(*content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": list(content)}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        parts("x", {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}),
        "messages[1].content[1].image_url",
    ),
    (
        parts({"type": "image_url", "image_url": {"url": "HTTPS://example.com/x.png"}}),
        "messages[1].content[0].image_url",
    ),
    (parts({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "messages[1].content[0].image_url"),
    (parts({"type": "image_url", "image_url": "http://10.0.0.1"}), "messages[1].content[0].image_url"),
    (parts({"image_url": "http://10.0.0.1"}), "messages[1].content[0].image_url"),
    (parts({"type": "video_url", "video_url": {"url": "http://10.0.0.1"}}), "messages[1].content[0].video_url"),
    (parts({"type": "image_url", "image_url": None}), "messages[1].content[0].image_url"),
    (parts({"type": "image_url", "image_url": {"url": 3}}), "messages[1].content[0].image_url"),
    (parts({"type": "text", "text": 3}), "messages[1].content[0].text"),
    (parts(3), "messages[1].content[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [TOOL, {"type": "function"}]}, "tools[1].function"),
    ({"tools": [TOOL, {"function": {"name": ""}}]}, "tools[1].function"),
    ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": 3}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
]


async def test_what_is_wrong_is_named(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    for more, param in WRONG:
        answer = await post(gateway, CHAT | more)
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["param"] == param
    assert fake.seen == []


async def test_ten_thousand_tools_are_nothing_to_fear(lab: Any) -> None:
    gateway, (fake,) = await lab(answers())
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object"}}} for n in range(10_000)
    ]
    assert (await post(gateway, {**CHAT, "tools": tools})).status_code == 200
    assert len(fake.seen[0].document["tools"]) == 10_000


# --- embeddings


def vector(text: object) -> list[float]:
    return [float(len(str(text))), 0.5]


async def embeds(exchange: Exchange) -> None:
    """Answer with vectors, the last one first, and without a usage."""
    given = exchange.seen.document["input"]
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(inputs)]
    await exchange.answer(200, {"object": "list", "data": data[::-1], "model": "m"})


@pytest.fixture
async def embedding(lab: Any) -> LocalGateway:
    """A gateway with a role of vectors."""
    gateway, _ = await lab(embeds)
    document = gateway.document
    document["helpers"]["a"]["models"]["model-a"] = {"kind": "embedding"}
    document["helpers"]["a"]["max_batch"] = 2
    document["roles"] = {"vectors": document["roles"]["chat"]}
    await gateway.reload(document)
    found: LocalGateway = gateway
    return found


async def test_vectors_come_in_order_as_base64_and_with_an_estimated_usage(embedding: LocalGateway) -> None:
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    body = {"model": "vectors", "input": texts, "encoding_format": "base64"}
    answer = await post(embedding, body, EMBED_PATH)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert [item["index"] for item in document["data"]] == list(range(5))
    found = [list(struct.unpack("<2f", base64.b64decode(item["embedding"]))) for item in document["data"]]
    assert found == [vector(text) for text in texts]
    assert document["usage"]["estimated"] is True, "over all parts"
    assert document["usage"]["prompt_tokens"] == document["usage"]["total_tokens"] == 6


async def test_tokens_are_counted_where_they_are_sent(embedding: LocalGateway) -> None:
    cases: tuple[tuple[Any, int], ...] = (([[1, 2, 3], [4]], 4), ([1, 2, 3], 3), ("ab", 1))
    for given, tokens in cases:
        answer = await post(embedding, {"model": "vectors", "input": given}, EMBED_PATH)
        assert answer.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "estimated": True}


async def test_a_length_that_no_endpoint_gives_is_refused_by_its_name(embedding: LocalGateway) -> None:
    body = {"model": "vectors", "input": "a", "dimensions": 3}
    answer = await post(embedding, body, EMBED_PATH)
    assert answer.status_code == 400 and error_of(answer)["param"] == "dimensions"
