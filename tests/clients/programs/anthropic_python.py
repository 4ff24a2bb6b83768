"""I/O: Anthropic's Python client."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
from scenarios import FRANCE, PARAMETERS, Setting, main, scenario

TOKENS = 8
WEATHER = {"name": "get_weather", "description": "Tells the weather of a city.", "input_schema": PARAMETERS}


def client_of(setting: Setting) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=setting.url, api_key="unused", max_retries=0, timeout=120)


def body_of(setting: Setting, **options: Any) -> dict[str, Any]:
    greedy = {"extra_body": {"temperature": 0}}  # today's SDK has no word for it; older ones and other clients do
    return {"model": setting.model, "messages": FRANCE, "max_tokens": TOKENS, **greedy, **options}


def ask(setting: Setting, **options: Any) -> Any:
    return client_of(setting).messages.create(**body_of(setting, **options))


@scenario("messages")
def messages(setting: Setting) -> None:
    answer = ask(setting)
    assert (answer.type, answer.role) == ("message", "assistant")
    assert answer.id.startswith("msg_")
    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.stop_reason in {"end_turn", "max_tokens"}
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= TOKENS


@scenario("messages with system, content as blocks, stop_sequences")
def blocks(setting: Setting) -> None:
    spoken = [
        {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "assistant", "content": "Hello!"},
        *FRANCE,
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert ask(setting, messages=spoken, system=system).content[0].text
    said = ask(setting).content[0].text
    word = said.split()[2]
    stopped = ask(setting, stop_sequences=[word])
    assert stopped.stop_reason in {"stop_sequence", "end_turn"}  # llama.cpp does not tell which of both
    assert word not in stopped.content[0].text
    assert said.startswith(stopped.content[0].text)


@scenario("stream: raw events in their order")
def events(setting: Setting) -> None:
    kinds = [event.type for event in ask(setting, stream=True) if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    assert set(kinds[2:-3]) == {"content_block_delta"}


@scenario("stream helper: text and the final message")
def stream(setting: Setting) -> None:
    with client_of(setting).messages.stream(**body_of(setting)) as told:
        text = "".join(told.text_stream)
        final = told.get_final_message()
    assert final.content[0].text == text == ask(setting).content[0].text
    assert final.usage.output_tokens > 0
    assert final.stop_reason in {"end_turn", "max_tokens"}


@scenario("stream, asynchronous")
def asynchronous(setting: Setting) -> None:
    async def told() -> str:
        client = anthropic.AsyncAnthropic(base_url=setting.url, api_key="unused", max_retries=0, timeout=120)
        async with client, client.messages.stream(**body_of(setting)) as stream:
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(told())


@scenario("tools: any, by name, none")
def tools(setting: Setting) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        once = {**choice, "disable_parallel_tool_use": True}
        answer = ask(setting, tools=[WEATHER], tool_choice=once, max_tokens=48)
        assert answer.stop_reason == "tool_use", answer
        (call,) = [block for block in answer.content if block.type == "tool_use"]
        assert call.id
        assert call.name == "get_weather"
        assert call.input["city"] in {"Paris", "Oslo"}
    silent = ask(setting, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=16)
    assert [block for block in silent.content if block.type == "tool_use"] == []


@scenario("tools: streamed, and the turn after a call")
def tools_streamed(setting: Setting) -> None:
    once = {"type": "any", "disable_parallel_tool_use": True}
    body = body_of(setting, tools=[WEATHER], tool_choice=once, max_tokens=48)
    with client_of(setting).messages.stream(**body) as told:
        kinds = [event.type for event in told]
        final = told.get_final_message()
    assert "input_json" in kinds
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert call.input["city"] in {"Paris", "Oslo"}
    turns = [
        *FRANCE,
        {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}]},
    ]
    assert ask(setting, messages=turns, tools=[WEATHER], max_tokens=16).stop_reason


@scenario("count_tokens is what a message is billed")
def count(setting: Setting) -> None:
    client = client_of(setting)
    counted = client.messages.count_tokens(model=setting.model, messages=FRANCE, system="Be brief.")
    usage = ask(setting, system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model=setting.model, messages=FRANCE, tools=[WEATHER]).input_tokens > 0


def raises(kind: type[anthropic.APIStatusError], call: Any) -> Any:
    try:
        call()
    except kind as error:
        assert isinstance(error.body, dict), error.body
        assert error.body["type"] == "error"
        assert error.body["error"]["message"]
        return error.body["error"]
    raise AssertionError(f"no {kind.__name__}")


@scenario("errors: NotFoundError, BadRequestError")
def errors(setting: Setting) -> None:
    assert raises(anthropic.NotFoundError, lambda: ask(setting, model="none"))["type"] == "not_found_error"
    for wrong in ({"messages": []}, {"max_tokens": -1}, {"messages": "x"}):
        error = raises(anthropic.BadRequestError, lambda wrong=wrong: ask(setting, **wrong))
        assert error["type"] == "invalid_request_error"
    raises(anthropic.BadRequestError, lambda: ask(setting, max_tokens=-1, stream=True))
    source = {"type": "url", "url": "http://127.0.0.1:9/cat.png"}
    picture = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    raises(anthropic.BadRequestError, lambda: ask(setting, messages=picture))


@scenario("keys: x-api-key and Bearer, a wrong one")
def keys(setting: Setting) -> None:
    def use(**credential: str) -> Any:
        client = anthropic.Anthropic(base_url=setting.keyed_url, max_retries=0, timeout=120, **credential)
        return client.messages.create(model="chat", messages=FRANCE, max_tokens=2)

    assert use(api_key=setting.key).content
    assert use(auth_token=setting.key).content
    assert raises(anthropic.AuthenticationError, lambda: use(api_key="wrong"))["type"] == "authentication_error"


@scenario("a client that leaves in the middle of a stream")
def leaving(setting: Setting) -> None:
    for _ in range(2):
        stream = ask(setting, stream=True, max_tokens=200)
        assert next(iter(stream)).type == "message_start"
        stream.close()
    assert ask(setting, max_tokens=2).content


if __name__ == "__main__":
    main()
