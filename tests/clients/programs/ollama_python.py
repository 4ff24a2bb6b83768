"""I/O: Ollama's Python client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama
from scenarios import FRANCE, PERSON, WEATHER, Setting, main, scenario

FEW = {"temperature": 0, "num_predict": 8}


def client_of(setting: Setting) -> ollama.Client:
    return ollama.Client(host=setting.url, timeout=120)


def chat(setting: Setting, **options: Any) -> Any:
    return client_of(setting).chat(**{"model": setting.model, "messages": FRANCE, "options": FEW, **options})


def check_end(last: Any) -> None:
    """Assert what the last part of every answer tells: counts, and durations in nanoseconds."""
    assert last.done is True
    assert last.done_reason in {"stop", "length"}
    assert last.prompt_eval_count > 0
    assert last.eval_count > 0
    assert last.total_duration > 1_000_000  # more than a millisecond
    assert last.eval_duration > 0


def raises(status: int, call: Any) -> ollama.ResponseError:
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status, (error.status_code, error.error)
        assert error.error
        return error
    raise AssertionError(f"no ResponseError with {status}")


@scenario("chat")
def whole(setting: Setting) -> None:
    answer = chat(setting)
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert answer.model == setting.model
    assert answer.created_at
    check_end(answer)
    assert answer.eval_count <= 8


@scenario("chat, streamed")
def streamed(setting: Setting) -> None:
    parts = list(chat(setting, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.message.role for part in parts} == {"assistant"}
    check_end(parts[-1])
    assert "".join(part.message.content or "" for part in parts) == chat(setting).message.content


@scenario("chat, asynchronous")
def asynchronous(setting: Setting) -> None:
    async def ask() -> str:
        client = ollama.AsyncClient(host=setting.url, timeout=120)
        parts = await client.chat(model=setting.model, messages=FRANCE, options=FEW, stream=True)
        return "".join([part.message.content or "" async for part in parts])

    assert asyncio.run(ask())


@scenario("generate, whole and streamed")
def generate(setting: Setting) -> None:
    ask: dict[str, Any] = {"model": setting.model, "prompt": "Say hello.", "options": FEW}
    answer = client_of(setting).generate(**ask)
    assert answer.response
    check_end(answer)
    parts = list(client_of(setting).generate(**ask, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.response for part in parts) == answer.response


@scenario("generate: raw, system")
def raw(setting: Setting) -> None:
    client = client_of(setting)
    assert client.generate(model=setting.model, prompt="The capital of France is", raw=True, options=FEW).response
    assert client.generate(model=setting.model, prompt="Hello.", system="Be brief.", options=FEW).response


@scenario("options: stop, seed, num_predict; keep_alive")
def options(setting: Setting) -> None:
    one, other = (
        chat(setting, options={"seed": 7, "temperature": 1.2, "num_predict": 8}).message.content for _ in range(2)
    )
    assert one == other
    word = chat(setting).message.content.split()[2]
    stopped = chat(setting, options={**FEW, "stop": [word]}, keep_alive="5m")
    assert word not in (stopped.message.content or "")
    assert stopped.done_reason == "stop"


@scenario("tools")
def tools(setting: Setting) -> None:
    answer = chat(setting, tools=[WEATHER], options={"temperature": 0, "num_predict": 40})
    assert answer.message.content or answer.message.tool_calls
    for call in answer.message.tool_calls or ():
        assert isinstance(call.function.arguments, dict)
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        *FRANCE,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Sunny.", "tool_name": "get_weather"},
    ]
    check_end(chat(setting, messages=messages, tools=[WEATHER]))
    check_end(list(chat(setting, tools=[WEATHER], stream=True))[-1])


@scenario("format: json, and a schema")
def formats(setting: Setting) -> None:
    more = {"temperature": 0, "num_predict": 40}
    said = json.loads(chat(setting, format=PERSON, options=more).message.content)
    assert set(said) == {"name", "age"}
    parts = chat(setting, format=PERSON, options=more, stream=True)
    assert set(json.loads("".join(part.message.content or "" for part in parts))) == {"name", "age"}
    messages = [{"role": "user", "content": "Give me a JSON object with one key, city, of a short word."}]
    loose = chat(setting, messages=messages, format="json", options={"temperature": 0, "num_predict": 40})
    if loose.done_reason == "stop":
        json.loads(loose.message.content)


@scenario("think")
def think(setting: Setting) -> None:
    assert chat(setting, think=False).message.content
    try:
        assert chat(setting, think=True).message.content
    except ollama.ResponseError as error:  # where it is known that the model cannot
        assert error.status_code == 400, error


@scenario("embed, embeddings", needs="embedding")
def embed(setting: Setting) -> None:
    client = client_of(setting)
    several = client.embed(model=setting.embedding, input=["a cat", "physics"])
    assert [len(vector) for vector in several.embeddings] == [setting.dimensions] * 2
    assert abs(sum(value * value for value in several.embeddings[0]) - 1) < 1e-3
    assert several.prompt_eval_count > 0
    one = client.embed(model=setting.embedding, input="a cat")
    assert all(abs(a - b) < 1e-2 for a, b in zip(one.embeddings[0], several.embeddings[0], strict=True))
    assert len(client.embeddings(model=setting.embedding, prompt="a cat").embedding) == setting.dimensions


@scenario("list, show, ps")
def listings(setting: Setting) -> None:
    client = client_of(setting)
    listed = {model.model: model for model in client.list().models}
    assert f"{setting.model}:latest" in listed, sorted(listed)
    assert all(model.details is not None and model.modified_at for model in listed.values())
    shown = client.show(setting.model)
    assert "completion" in shown.capabilities
    assert shown.details is not None
    lengths = [value for key, value in shown.modelinfo.items() if key.endswith(".context_length")]
    assert lengths == [] or lengths[0] > 0
    assert all(model.model for model in client.ps().models)


@scenario("names: NAME and NAME:latest")
def latest(setting: Setting) -> None:
    assert chat(setting, model=f"{setting.model}:latest").message.content


@scenario("management calls are refused with the reason")
def management(setting: Setting) -> None:
    client = client_of(setting)
    for call in (
        lambda: client.pull("llama3.2"),
        lambda: client.push("llama3.2"),
        lambda: client.delete(setting.model),
        lambda: client.copy(setting.model, "other"),
        lambda: client.create(model="other", from_=setting.model),
    ):
        assert "managed by the stack files" in raises(403, call).error
    try:
        list(client.pull("llama3.2", stream=True))
    except ollama.ResponseError as error:
        assert error.status_code == 403
    else:
        raise AssertionError("a streamed pull was not refused")


@scenario("errors")
def errors(setting: Setting) -> None:
    assert "no-such-model" in raises(404, lambda: chat(setting, model="no-such-model")).error
    raises(400, lambda: client_of(setting)._request_raw("POST", "/api/chat", json={"model": 5, "messages": "x"}))
    raises(404, lambda: client_of(setting).show("no-such-model"))


@scenario("keys: a good one, none")
def keys(setting: Setting) -> None:
    ask: dict[str, Any] = {"model": "chat", "messages": FRANCE, "options": FEW}
    good = ollama.Client(host=setting.keyed_url, headers={"Authorization": f"Bearer {setting.key}"}, timeout=120)
    assert good.chat(**ask).message.content
    raises(401, lambda: ollama.Client(host=setting.keyed_url, timeout=120).chat(**ask))


if __name__ == "__main__":
    main()
