"""What an endpoint cannot do by itself, through the gateway: done in its place, refused by name, or left out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from runtime.gateway.facts.known import Facts
from tests.fakes.chat_engines import by_schema, llama_cpp, ollama_chat, says, stock_mlx, talks
from tests.fakes.encoders import embeds
from tests.fakes.upstream import Behaviour, Exchange, answers, refuses, stalls
from tests.runtime.gateway.harness import CHAT, LocalGateway, until

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}


@pytest.fixture
def engines(lab: Any) -> Any:
    """Return a function that starts fakes as helpers of these APIs, all in the role `chat`, in their order."""

    async def start(
        *behaviours: tuple[str, Behaviour], helper: Any = (), **more: Any
    ) -> tuple[LocalGateway, list[Any]]:
        gateway, fakes = await lab(*(behave for _, behave in behaviours), **more)
        for letter, (api, _) in zip("abc", behaviours, strict=False):
            gateway.document["helpers"][letter] |= {"api": api, **dict(helper)}
        await gateway.reload(gateway.document)
        return gateway, fakes

    return start


async def post(gateway: LocalGateway, path: str = CHAT_PATH, **body: Any) -> httpx.Response:
    subject = CHAT if path == CHAT_PATH else {"model": "chat", "prompt": "hi"}
    async with gateway.client() as client:
        return await client.post(path, json={**subject, **body})


def events(text: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream that has ended well."""
    assert text.endswith("data: [DONE]\n\n"), text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def texts(answer: httpx.Response) -> list[str]:
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


@pytest.mark.parametrize(
    ("api", "engine"), [("ollama", ollama_chat), ("mlx-lm-server", stock_mlx)], ids=["ollama", "mlx"]
)
async def test_n_answers_come_from_engines_that_give_one(engines: Any, api: str, engine: Any) -> None:
    gateway, (fake,) = await engines((api, engine(says("one", "two", "three"))))
    answer = await post(gateway, n=3, seed=5)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert sorted(texts(answer)) == ["one", "three", "two"]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]
    assert document["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}
    assert sorted(seen.document["seed"] for seen in fake.seen) == [5, 6, 7]
    assert answer.headers["x-orchestrate-emulated"] == "n"
    assert answer.headers["x-orchestrate-attempts"] == "1"
    async with gateway.client() as client:
        receipt = (await client.get(f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}",
                                    headers={"authorization": "Bearer admin-token"})).json()  # fmt: skip
    assert [attempt["emulated"] for attempt in receipt["attempts"]] == [["n"]]
    assert gateway.in_flight == 0 and gateway.counted("a") == (0, 0)


async def test_an_endpoint_that_takes_one_request_at_a_time_is_asked_one_after_the_other(engines: Any) -> None:
    most = 0

    async def counting(exchange: Exchange) -> None:
        nonlocal most
        most = max(most, sum(not seen.is_begun for seen in fakes[0].seen))
        await talks(says("x"))(exchange)

    gateway, fakes = await engines(("ollama", counting), chat={"limits": {"max_in_flight": 1}})
    assert len(texts(await post(gateway, n=4))) == 4
    assert (len(fakes[0].seen), most) == (4, 1)


@pytest.mark.parametrize("with_usage", [True, False])
async def test_n_answers_are_streamed_with_their_indices(engines: Any, with_usage: bool) -> None:
    gateway, _ = await engines(("ollama", ollama_chat(says("one", "two"))))
    more = {"stream_options": {"include_usage": True}} if with_usage else {}
    answer = await post(gateway, n=2, stream=True, **more)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-orchestrate-emulated"] == "n"
    chunks = events(answer.text)
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usages == ([{"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}] if with_usage else [])
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in (0, 1):
        mine = [piece for piece in pieces if piece["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["finish_reason"] == "stop"
    assert sorted(piece["delta"].get("content", "") for piece in pieces if piece["delta"].get("content")) == [
        "one",
        "two",
    ]


async def test_prompts_get_an_answer_each(engines: Any) -> None:
    gateway, (fake,) = await engines(("ollama", ollama_text()))
    document = (await post(gateway, TEXT_PATH, prompt=["a", "b"])).json()
    assert [choice["text"] for choice in document["choices"]] == ["to a", "to b"]
    assert document["usage"] == {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}
    refused = await post(gateway, TEXT_PATH, prompt=[1, 2])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert len(fake.seen) == 2


def ollama_text() -> Behaviour:
    return talks(lambda asked: {"content": f"to {asked['prompt']}"})


async def test_a_form_is_asked_for_in_words_and_checked(engines: Any) -> None:
    gateway, (fake,) = await engines(("mlx-lm-server", stock_mlx(says('Sure:\n```json\n{"a": 1}\n```'))))
    answer = await post(gateway, **FORM)
    assert texts(answer) == ['{"a": 1}'] and answer.headers["x-orchestrate-emulated"] == "response_format"
    assert len(fake.seen) == 1


async def test_an_answer_without_the_form_is_asked_for_once_more_with_what_was_wrong(engines: Any) -> None:
    gateway, (fake,) = await engines(("mlx-lm-server", stock_mlx(says('{"a": "x"}', '{"a": 2}'))))
    answer = await post(gateway, **FORM)
    assert texts(answer) == ['{"a": 2}']
    assert answer.json()["usage"]["total_tokens"] == 28
    first, second = (seen.document["messages"] for seen in fake.seen)
    assert second[: len(first)] == first and second[len(first)]["content"] == '{"a": "x"}'
    assert "'x' is not of type 'integer'" in second[-1]["content"]


async def test_a_model_that_cannot_is_told_of_and_its_endpoint_is_not_blamed(engines: Any) -> None:
    gateway, (fake,) = await engines(("mlx-lm-server", stock_mlx(says("I would rather not."))))
    for is_stream in (False, True):
        answer = await post(gateway, stream=is_stream, **FORM)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (422, "answer_not_in_form", "response_format")
        assert "it is no JSON" in error["message"] and error["type"] == "invalid_request_error"
    assert len(fake.seen) == 4
    assert gateway.counted("a") == (0, 0) and gateway.in_flight == 0


async def test_another_endpoint_may_do_what_a_model_could_not(engines: Any) -> None:
    gateway, (first, second) = await engines(
        ("mlx-lm-server", stock_mlx(says("No."))), ("openai", talks(says('{"a": 3}')))
    )
    answer = await post(gateway, **FORM)
    assert texts(answer) == ['{"a": 3}'] and answer.headers["x-orchestrate-endpoint"] == "b"
    assert "x-orchestrate-emulated" not in answer.headers
    assert (len(first.seen), second.seen[0].document["response_format"]) == (2, FORM["response_format"])


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_made_by_schema_where_the_engine_knows_schemas(engines: Any, is_stream: bool) -> None:
    gateway, (fake,) = await engines(("ollama", ollama_chat(by_schema)))
    named = {"type": "function", "function": {"name": "weather"}}
    answer = await post(gateway, tools=[WEATHER], tool_choice=named, stream=is_stream)
    assert answer.headers["x-orchestrate-emulated"] == "tool_choice"
    assert fake.seen[0].document["response_format"]["type"] == "json_schema"
    if is_stream:
        choices = [choice for chunk in events(answer.text) for choice in chunk["choices"]]
        (call,) = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert call["index"] == 0 and choices[-1]["finish_reason"] == "tool_calls"
    else:
        (choice,) = answer.json()["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city":"text"}'})


async def test_a_call_is_asked_for_in_words_where_it_does_not(engines: Any) -> None:
    called = '{"name": "weather", "arguments": {"city": "Rome"}}'
    gateway, (fake,) = await engines(("mlx-lm-server", stock_mlx(says("Rome is lovely.", called))))
    answer = await post(gateway, tools=[WEATHER], tool_choice="required")
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert len(fake.seen) == 2


async def test_tools_are_told_in_words_where_a_template_leaves_them_out(engines: Any) -> None:
    called = '{"name": "weather", "arguments": {"city": "Rome"}}'
    gateway, (fake,) = await engines(
        ("openai", llama_cpp(says(called, "It is warm.", '{"name": "weather", "arguments": 1}')))
    )
    (target,) = {target.identity for target in gateway.gateway.services.live.table.targets()}  # type: ignore[union-attr]
    facts = Facts(source="llama.cpp", observed_at=0.0, cannot=frozenset({"tools"}))
    gateway.gateway.services.facts.note(target, facts)
    first = await post(gateway, tools=[WEATHER])
    assert first.headers["x-orchestrate-emulated"] == "tools"
    (call,) = first.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert texts(await post(gateway, tools=[WEATHER])) == ["It is warm."]
    # It tried to call twice, and wrongly: what it said is all there is.
    assert texts(await post(gateway, tools=[WEATHER])) == ['{"name": "weather", "arguments": 1}']
    assert len(fake.seen) == 4


async def test_one_call_is_given_where_one_is_wanted(engines: Any) -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "weather", "arguments": "{}"}} for n in (1, 2)]
    gateway, _ = await engines(("ollama", ollama_chat(says({"tool_calls": calls, "finish_reason": "tool_calls"}))))
    answer = await post(gateway, tools=[WEATHER], parallel_tool_calls=False)
    assert [call["id"] for call in answer.json()["choices"][0]["message"]["tool_calls"]] == ["c1"]
    assert answer.headers["x-orchestrate-emulated"] == "parallel_tool_calls"
    streamed = await post(gateway, tools=[WEATHER], parallel_tool_calls=False, stream=True)
    assert streamed.headers["x-orchestrate-emulated"] == "parallel_tool_calls"
    choices = [choice for chunk in events(streamed.text) for choice in chunk["choices"]]
    assert [call["id"] for choice in choices for call in choice["delta"].get("tool_calls", ())] == ["c1"]
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_a_schema_that_is_none_is_the_clients_fault(engines: Any) -> None:
    gateway, (fake,) = await engines(("mlx-lm-server", stock_mlx(says("{}"))))
    for schema in ({"type": "objekt"}, {"$ref": "http://127.0.0.1:1/x"}):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = await post(gateway, response_format=form)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "response_format.json_schema.schema"
    assert gateway.counted("a") == (0, 0) and len(fake.seen) == 1


async def test_a_program_that_was_recognised_is_spared_what_breaks_it(engines: Any) -> None:
    gateway, (fake,) = await engines(("openai", llama_cpp(says("x"))))
    broken = await post(gateway, n=2)
    assert broken.status_code == 503  # nobody knows yet who is there
    (target,) = {target.identity for target in gateway.gateway.services.live.table.targets()}  # type: ignore[union-attr]
    gateway.gateway.services.facts.note(target, Facts(source="llama.cpp", observed_at=0.0))
    assert texts(await post(gateway, n=2)) == ["x", "x"]
    assert len(fake.seen) == 3


async def test_images_go_to_the_endpoint_that_can_see(engines: Any) -> None:
    gateway, (blind, seeing) = await engines(("openai", answers("?")), ("openai", answers("a cat")))
    services = gateway.gateway.services
    for target in services.live.table.targets():  # type: ignore[union-attr]
        word = {"can" if target.name == "b" else "cannot": frozenset({"vision"})}
        services.facts.note(target.identity, Facts(observed_at=0.0, **word))  # type: ignore[arg-type]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    shown = [{"role": "user", "content": [image]}]
    assert texts(await post(gateway, messages=shown)) == ["a cat"]
    assert (len(blind.seen), len(seeing.seen)) == (0, 1)
    refused = await post(gateway, messages=shown, model="a")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content[0]")


async def test_a_length_of_vectors_that_a_model_has_not_got_is_refused_by_name_or_left_out(engines: Any) -> None:
    gateway, _ = await engines(("openai", embeds(length=8)))
    document = gateway.document
    document["helpers"]["a"]["models"]["model-a"] = {"kind": "embedding"}
    await gateway.reload(document)
    asked = {"model": "chat", "input": "hi", "dimensions": 3}
    async with gateway.client() as client:
        refused = await client.post("/v1/embeddings", json=asked)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
        assert "8 numbers" in refused.json()["error"]["message"]
        document["helpers"]["a"]["drop_params"] = ["dimensions"]
        await gateway.reload(document)
        answer = await client.post("/v1/embeddings", json=asked)
    assert answer.status_code == 200 and len(answer.json()["data"][0]["embedding"]) == 8
    assert answer.headers["x-orchestrate-dropped"] == "dimensions"


async def test_dropped_parameters_are_told(engines: Any) -> None:
    gateway, (fake,) = await engines(("openai", talks(says("x"))), helper={"drop_params": ["seed", "logit_bias"]})
    answer = await post(gateway, seed=1, temperature=0.5)
    assert answer.status_code == 200 and answer.headers["x-orchestrate-dropped"] == "seed"
    assert "seed" not in fake.seen[0].document and fake.seen[0].document["temperature"] == 0.5
    plain = await post(gateway)
    assert "x-orchestrate-dropped" not in plain.headers
    streamed = await post(gateway, seed=1, stream=True)
    assert streamed.headers["x-orchestrate-dropped"] == "seed" and events(streamed.text)


@pytest.mark.parametrize("more", [{}, {"n": 2}], ids=["passed on", "put together"])
async def test_a_client_gets_the_usage_of_a_stream_whose_endpoint_is_spared_the_question(
    engines: Any, more: dict[str, Any]
) -> None:
    helper = {"drop_params": ["stream_options"]}
    gateway, (fake,) = await engines(("ollama", ollama_chat(says("one two three"))), helper=helper)
    answer = await post(gateway, stream=True, stream_options={"include_usage": True}, **more)
    assert answer.headers["x-orchestrate-dropped"] == "stream_options"
    assert all("stream_options" not in seen.document for seen in fake.seen)
    last = events(answer.text)[-1]
    assert last["choices"] == [] and last["usage"]["prompt_tokens"] > 0 and last["usage"]["completion_tokens"] > 0
    silent = await post(gateway, stream=True, **more)
    assert all(each["choices"] for each in events(silent.text))


async def test_an_endpoint_that_fails_in_the_middle_leaves_all_of_it_to_another(engines: Any) -> None:
    served = iter(range(100))

    async def second_fails(exchange: Exchange) -> None:
        await (refuses(500) if next(served) == 1 else talks(says("half")))(exchange)

    gateway, (_, second) = await engines(("ollama", second_fails), ("ollama", ollama_chat(says("whole"))))
    answer = await post(gateway, n=3)
    assert texts(answer) == ["whole"] * 3 and answer.headers["x-orchestrate-attempts"] == "2"
    assert len(second.seen) == 3
    await until(lambda: gateway.in_flight == 0)


async def test_a_client_that_leaves_ends_all_requests_of_its_own(engines: Any) -> None:
    gateway, (fake,) = await engines(("ollama", stalls))
    asking = asyncio.create_task(post(gateway, n=3))
    await until(lambda: len(fake.seen) == 3)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: all(seen.was_cut.is_set() for seen in fake.seen))
    await until(lambda: gateway.in_flight == 0)


@pytest.mark.parametrize("message", ["str", {"role": "assistant", "tool_calls": 5}, {"tool_calls": ["x"]}])
async def test_an_answer_that_cannot_be_put_together_is_left_to_another_endpoint(engines: Any, message: Any) -> None:
    async def odd(exchange: Exchange) -> None:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await exchange.answer(200, {"id": "1", "object": "chat.completion", "choices": [choice]})

    gateway, _ = await engines(("ollama", odd), ("openai", talks(says("good"))))
    answer = await post(gateway, n=2, logprobs=True, stream=True)
    assert answer.status_code == 200 and answer.headers["x-orchestrate-endpoint"] == "b", answer.text
    assert gateway.counted("a")[1] == 1 and events(answer.text)
