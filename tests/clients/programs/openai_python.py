"""I/O: OpenAI's Python client, everything that an application does with it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any, Literal

import openai
import pydantic
from scenarios import FRANCE, PERSON, WEATHER, Setting, main, scenario

TOKENS = 8


def client_of(setting: Setting, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{setting.url}/v1", api_key="unused", max_retries=0, timeout=120, **options)


def ask(setting: Setting, **options: Any) -> Any:
    body = {"model": setting.model, "messages": FRANCE, "max_tokens": TOKENS, "temperature": 0, **options}
    with client_of(setting) as client:
        answer = client.chat.completions.create(**body)
        return list(answer) if body.get("stream") else answer


def check_stream(chunks: Iterable[Any]) -> None:
    """Assert what holds for the chunks of every streamed answer of one choice."""
    chunks = list(chunks)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1, chunks[:2]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant", choices[0]
    assert [choice.delta.role for choice in choices[1:] if choice.delta.role] == []
    assert [bool(choice.finish_reason) for choice in choices] == [False] * (len(choices) - 1) + [True]


def text_of(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@scenario("chat")
def chat(setting: Setting) -> None:
    answer = ask(setting)
    (choice,) = answer.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert isinstance(choice.message.content, str)
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert not choice.message.tool_calls
    assert answer.object == "chat.completion"
    assert answer.id
    assert abs(answer.created - time.time()) < 3600
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= TOKENS
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@scenario("chat, the newer words: max_completion_tokens, role developer, content as parts, null fields")
def newer_words(setting: Setting) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the "}, {"type": "text", "text": "capital?"}]},
    ]
    with client_of(setting) as client:
        answer = client.chat.completions.create(
            model=setting.model, messages=messages, max_completion_tokens=4, temperature=0, stop=None, tools=[]
        )
    assert answer.usage.completion_tokens <= 4
    assert answer.choices[0].message.content


@scenario("chat, asynchronous and four at once")
def four_at_once(setting: Setting) -> None:
    async def ask_all() -> list[Any]:
        url = f"{setting.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=120) as client:
            asked = client.chat.completions.create
            asking = [asked(model=setting.model, messages=FRANCE, max_tokens=4, temperature=0) for _ in range(4)]
            return await asyncio.gather(*asking)

    answers = asyncio.run(ask_all())
    assert len({answer.id for answer in answers}) == 4
    assert all(answer.choices[0].message.content for answer in answers)


@scenario("stream")
def stream(setting: Setting) -> None:
    chunks = ask(setting, stream=True)
    check_stream(chunks)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks), "usage that nobody asked for"
    assert text_of(chunks) == ask(setting).choices[0].message.content


@scenario("stream with usage")
def stream_usage(setting: Setting) -> None:
    chunks = ask(setting, stream=True, stream_options={"include_usage": True})
    *before, last = chunks
    check_stream(before)
    assert all(chunk.usage is None and chunk.choices for chunk in before)
    assert last.choices == []
    assert last.usage.prompt_tokens > 0
    assert 0 < last.usage.completion_tokens <= TOKENS


@scenario("stream helper: events and the final completion")
def stream_helper(setting: Setting) -> None:
    with (
        client_of(setting) as client,
        client.chat.completions.stream(
            model=setting.model, messages=FRANCE, max_tokens=TOKENS, temperature=0, stop=word_of(setting)
        ) as events,
    ):
        kinds = [event.type for event in events]
        final = events.get_final_completion()  # raises where an answer was cut off
    assert "content.delta" in kinds
    assert "content.done" in kinds
    assert ask(setting).choices[0].message.content.startswith(final.choices[0].message.content)


def word_of(setting: Setting) -> str:
    """Return a word that the answer has, behind others: the model may say anything."""
    return str(ask(setting).choices[0].message.content.split()[2])


@scenario("stop")
def stop(setting: Setting) -> None:
    word = word_of(setting)
    answer = ask(setting, stop=[word, "never said"])
    assert answer.choices[0].finish_reason == "stop"
    said = answer.choices[0].message.content
    assert word not in said
    assert ask(setting).choices[0].message.content.startswith(said)
    chunks = ask(setting, stop=word, stream=True)
    check_stream(chunks)
    assert text_of(chunks) == said


@scenario("seed", may_refuse=("seed",))
def seed(setting: Setting) -> None:
    one, other = (ask(setting, temperature=1.2, seed=7).choices[0].message.content for _ in range(2))
    assert one == other, (one, other)


@scenario("n", may_refuse=("n",))
def several(setting: Setting) -> None:
    answer = ask(setting, n=2, temperature=0.8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.usage.completion_tokens > 2
    indexes = {choice.index for chunk in ask(setting, n=2, stream=True) for choice in chunk.choices}
    assert indexes == {0, 1}


@scenario("logprobs", may_refuse=("logprobs", "top_logprobs"))
def logprobs(setting: Setting) -> None:
    choice = ask(setting, logprobs=True, top_logprobs=2, max_tokens=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) >= 1
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    assert "".join(token.token for token in tokens).startswith(choice.message.content)
    chunks = ask(setting, logprobs=True, max_tokens=3, stream=True)
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert all(each and each.content for each in told), told


def check_call(call: Any) -> None:
    assert call.id
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Oslo"}, call


def ask_with_tool(setting: Setting, choice: Any, **options: Any) -> Any:
    # A small model calls again and again where it may.
    return ask(setting, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=48, **options)


@scenario("tools: tool_choice required", may_refuse=("tools", "tool_choice"))
def tool_required(setting: Setting) -> None:
    choice = ask_with_tool(setting, "required").choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    check_call(call)


@scenario("tools: one by its name", may_refuse=("tools", "tool_choice"))
def tool_by_name(setting: Setting) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    choice = ask(setting, tools=[other, WEATHER], tool_choice=named, parallel_tool_calls=False, max_tokens=48).choices[
        0
    ]
    check_call(choice.message.tool_calls[0])


@scenario("tools: streamed", may_refuse=("tools", "tool_choice"))
def tool_streamed(setting: Setting) -> None:
    chunks = ask_with_tool(setting, "required", stream=True)
    check_stream(chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls", text_of(chunks)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {delta.index for delta in deltas} == {0}
    assert deltas[0].id
    assert [delta.id for delta in deltas[1:] if delta.id] == []
    assert "".join(delta.function.name or "" for delta in deltas) == "get_weather"
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas))["city"] in {"Paris", "Oslo"}


@scenario("tools: none, auto and the turn after a call", may_refuse=("tools", "tool_choice"))
def tool_turns(setting: Setting) -> None:
    assert not ask_with_tool(setting, "none").choices[0].message.tool_calls
    free = ask_with_tool(setting, "auto").choices[0]
    assert free.message.content or free.message.tool_calls
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *FRANCE,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    assert ask(setting, messages=messages, tools=[WEATHER], max_tokens=16).choices[0].message is not None


@scenario("response_format: json_object", may_refuse=("response_format",))
def json_object(setting: Setting) -> None:
    messages = [{"role": "user", "content": "Give me a JSON object with one key, city, of a short word."}]
    choice = ask(setting, messages=messages, response_format={"type": "json_object"}, max_tokens=48).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:  # a small model may go on for ever; what it said is the beginning of an object
        assert choice.message.content.lstrip().startswith("{")


@scenario("response_format: json_schema", may_refuse=("response_format",))
def json_schema(setting: Setting) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    choice = ask(setting, response_format=wanted, max_tokens=40).choices[0]
    assert choice.finish_reason == "stop", choice
    said = json.loads(choice.message.content)
    assert set(said) == {"name", "age"}
    assert said["age"] in {7, 8}


@scenario("parse: an answer as a Pydantic model, a tool as one", may_refuse=("response_format", "tools", "tool_choice"))
def parse(setting: Setting) -> None:
    class Person(pydantic.BaseModel):
        name: Literal["Ada", "Bo"]
        age: Literal[7, 8]

    class get_weather(pydantic.BaseModel):  # noqa: N801 - the class's name is the tool's
        city: Literal["Paris", "Oslo"]

    with client_of(setting) as client:
        answer = client.chat.completions.parse(
            model=setting.model, messages=FRANCE, response_format=Person, max_tokens=40, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Person)
        called = client.chat.completions.parse(
            model=setting.model, messages=FRANCE, tools=[openai.pydantic_function_tool(get_weather)],
            tool_choice="required", parallel_tool_calls=False, max_tokens=48, temperature=0,
        )  # fmt: skip
    (call,) = called.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, get_weather)


@scenario("completions: whole and streamed")
def completions(setting: Setting) -> None:
    body: dict[str, Any] = {"model": setting.model, "prompt": "The capital of France is", "max_tokens": 4}
    with client_of(setting) as client:
        answer = client.completions.create(**body, temperature=0)
        chunks = list(client.completions.create(**body, temperature=0, stream=True))
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage.completion_tokens <= 4
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text
    finished = [bool(chunk.choices[0].finish_reason) for chunk in chunks if chunk.choices]
    assert finished == [False] * (len(finished) - 1) + [True]


@scenario("embeddings: base64 (the client's default) and floats, one text and several", needs="embedding")
def embeddings(setting: Setting) -> None:
    texts = ["a cat", "quantum physics", "Ünïcode \N{CAT FACE}"]
    with client_of(setting) as client:
        answer = client.embeddings.create(model=setting.embedding, input=texts)
        floats = client.embeddings.create(model=setting.embedding, input=texts, encoding_format="float")
        one = client.embeddings.create(model=setting.embedding, input=texts[0])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert {len(item.embedding) for item in answer.data} == {setting.dimensions}
    assert answer.usage.prompt_tokens > 0
    for item, other in zip(answer.data, floats.data, strict=True):
        assert all(abs(a - b) < 1e-3 for a, b in zip(item.embedding, other.embedding, strict=True))
    assert all(abs(a - b) < 1e-2 for a, b in zip(one.data[0].embedding, answer.data[0].embedding, strict=True))


@scenario("embeddings: dimensions", may_refuse=("dimensions",), needs="embedding")
def dimensions(setting: Setting) -> None:
    with client_of(setting) as client:
        own = client.embeddings.create(model=setting.embedding, input="hi", dimensions=setting.dimensions)
        assert len(own.data[0].embedding) == setting.dimensions
        cut = client.embeddings.create(model=setting.embedding, input="hi", dimensions=setting.dimensions // 2)
    assert len(cut.data[0].embedding) == setting.dimensions // 2, "neither cut nor refused"


@scenario("embeddings: token ids", may_refuse=("input",), needs="embedding")
def token_ids(setting: Setting) -> None:
    with client_of(setting) as client:
        answer = client.embeddings.create(model=setting.embedding, input=[[200, 300, 400], [500]])
    assert [len(item.embedding) for item in answer.data] == [setting.dimensions] * 2


@scenario("models: list and retrieve")
def models(setting: Setting) -> None:
    with client_of(setting) as client:
        listed = list(client.models.list())
        assert {setting.model, setting.embedding} - {""} <= {model.id for model in listed}
        assert all(model.object == "model" and model.owned_by and model.created > 0 for model in listed)
        assert client.models.retrieve(setting.model).id == setting.model
        raises(openai.NotFoundError, lambda: client.models.retrieve("no/such:model"))


def raises(kind: type[openai.APIStatusError], call: Any) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        assert isinstance(error.body, dict), error.body
        assert {"message", "type", "param", "code"} <= set(error.body), error.body
        return error
    raise AssertionError(f"no {kind.__name__}")


@scenario("errors: NotFoundError, BadRequestError")
def errors(setting: Setting) -> None:
    missing = raises(openai.NotFoundError, lambda: ask(setting, model="no-such-model"))
    assert missing.code == "model_not_found"
    assert raises(openai.BadRequestError, lambda: ask(setting, messages=[])).body["message"]
    wrong = raises(openai.BadRequestError, lambda: ask(setting, temperature="hot", stream=True))
    assert wrong.type == "invalid_request_error"
    with client_of(setting) as client:
        raises(openai.NotFoundError, client.files.list)


@scenario("errors: a prompt that is too long, by its code", needs="context")
def too_long(setting: Setting) -> None:
    messages = [{"role": "user", "content": "word " * (setting.context + 100)}]
    error = raises(openai.BadRequestError, lambda: ask(setting, messages=messages))
    assert error.code == "context_length_exceeded", error.body


@scenario("errors: an image by URL, and for a model that sees none")
def image(setting: Setting) -> None:
    for url in ("http://127.0.0.1:9/cat.png", "data:image/png;base64,iVBORw0KGgo="):
        parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
        raises(openai.BadRequestError, lambda parts=parts: ask(setting, messages=[{"role": "user", "content": parts}]))


@scenario("keys: a good one, a wrong one, none")
def keys(setting: Setting) -> None:
    def use(key: str) -> Any:
        with openai.OpenAI(base_url=f"{setting.keyed_url}/v1", api_key=key, max_retries=0, timeout=120) as client:
            return client.chat.completions.create(model="chat", messages=FRANCE, max_tokens=2)

    assert use(setting.key).choices
    assert raises(openai.AuthenticationError, lambda: use("sk-wrong")).code
    with openai.OpenAI(base_url=f"{setting.keyed_url}/v1", api_key=setting.key, max_retries=0) as client:
        silent = {"Authorization": openai.Omit()}
        refused = raises(openai.AuthenticationError, lambda: client.models.list(extra_headers=silent))
    assert refused.code == "missing_api_key"


@scenario("a client that leaves in the middle of a stream, and one that gives up waiting")
def leaving(setting: Setting) -> None:
    with client_of(setting) as client:
        body: dict[str, Any] = {"model": setting.model, "messages": FRANCE, "max_tokens": 200}
        for _ in range(2):
            answer = client.chat.completions.create(**body, stream=True)
            assert next(iter(answer)).choices
            answer.close()
        try:
            client.with_options(timeout=0.05).chat.completions.create(**body)
        except openai.APITimeoutError:
            pass
        else:
            raise AssertionError("no APITimeoutError")
    assert ask(setting, max_tokens=2).choices  # nobody is still at work for those who left


if __name__ == "__main__":
    main()
