"""I/O: OpenAI's Python client with the Responses API."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
from scenarios import PARAMETERS, Setting, main, scenario

WEATHER = {"type": "function", "name": "get_weather", "description": "Tells the weather.", "parameters": PARAMETERS}
TOKENS = 16


def client_of(setting: Setting) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{setting.url}/v1", api_key="unused", max_retries=0, timeout=120)


def ask(setting: Setting, **options: Any) -> Any:
    body = {"model": setting.model, "input": "What is the capital of France?", "max_output_tokens": TOKENS}
    return client_of(setting).responses.create(**{**body, "temperature": 0, "store": False, **options})


@scenario("responses")
def whole(setting: Setting) -> None:
    answer = ask(setting)
    assert answer.object == "response"
    assert answer.status in {"completed", "incomplete"}
    assert answer.output_text
    (message,) = answer.output
    assert (message.type, message.role) == ("message", "assistant")
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= TOKENS


@scenario("responses: instructions, a conversation as input")
def conversation(setting: Setting) -> None:
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    assert ask(setting, input=turns, instructions="Be brief.").output_text


@scenario("responses: stream")
def stream(setting: Setting) -> None:
    events = list(ask(setting, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds
    assert kinds[-1] in {"response.completed", "response.incomplete"}, kinds
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == ask(setting).output_text


@scenario("responses: stream helper")
def helper(setting: Setting) -> None:
    body = {"model": setting.model, "input": "Hello.", "max_output_tokens": TOKENS, "temperature": 0}
    with client_of(setting).responses.stream(**body) as events:
        assert any(event.type == "response.output_text.delta" for event in events)


@scenario("responses: tools, whole, streamed and the turn after a call", may_refuse=("tools", "tool_choice"))
def tools(setting: Setting) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 48}
    asked["parallel_tool_calls"] = False
    (call,) = ask(setting, **asked).output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments)["city"] in {"Paris", "Oslo"}
    events = list(ask(setting, **asked, stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (streamed,) = events[-1].response.output
    assert "".join(pieces) == streamed.arguments
    turns = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    assert ask(setting, input=turns, tools=[WEATHER]).output


@scenario("responses: parse, an answer as a Pydantic model", may_refuse=("text", "text.format", "response_format"))
def parse(setting: Setting) -> None:
    class Person(pydantic.BaseModel):
        name: Literal["Ada", "Bo"]
        age: Literal[7, 8]

    answer = client_of(setting).responses.parse(
        model=setting.model, input="Who?", text_format=Person, max_output_tokens=40, temperature=0
    )
    assert isinstance(answer.output_parsed, Person)


@scenario("responses: errors, and what needs a memory of answers is refused")
def errors(setting: Setting) -> None:
    for kind, options in (
        (openai.NotFoundError, {"model": "no-such-model"}),
        (openai.BadRequestError, {"temperature": "hot"}),
        (openai.BadRequestError, {"previous_response_id": "resp_1"}),
    ):
        try:
            ask(setting, **options)
        except kind as error:
            assert isinstance(error.body, dict)
            assert error.body["message"]
        else:
            raise AssertionError(f"no {kind.__name__} for {options}")


if __name__ == "__main__":
    main()
