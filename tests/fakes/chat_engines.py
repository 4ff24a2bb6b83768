"""I/O: servers of chat that know less than OpenAI's API says: behaviours of `FakeUpstream`.

What they take, pass over and break at is what the servers' sources say; see `runtime/gateway/adapters/abilities.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from itertools import chain, repeat
from typing import Any

from tests.fakes.upstream import DONE, Behaviour, Exchange, event

OLLAMA_CHAT = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "seed", "stop", "temperature"),
        *("frequency_penalty", "presence_penalty", "top_p", "response_format", "tools", "reasoning_effort"),
        *("logprobs", "top_logprobs"),
    }
)
"""The fields of its `ChatCompletionRequest`; others it passes over."""
_MLX = frozenset({"n", "tool_choice", "response_format", "best_of", "parallel_tool_calls", "logprobs"})
"""What it passes over, or dies of."""


def says(*texts: str | dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Say one thing after the other, the last one again and again: a text, or the fields of a message."""
    said: Iterator[str | dict[str, Any]] = chain(texts, repeat(texts[-1]))

    def say(_: dict[str, Any]) -> dict[str, Any]:
        found = next(said)
        return {"content": found} if isinstance(found, str) else dict(found)

    return say


def talks(
    say: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    never: Collection[str] = (),
    breaks_at: Collection[str] = (),
) -> Behaviour:
    """Answer chats and completions with what `say` makes of the request; `finish_reason` may be among it.

    A request with a parameter of `never` fails the test, one of `breaks_at` is an error of the server.
    """

    async def behave(exchange: Exchange) -> None:
        asked = exchange.seen.document
        assert not (found := set(never) & asked.keys()), f"it would pass over {sorted(found)}"
        if broken := [name for name in breaks_at if asked.get(name) not in (None, 1)]:
            await exchange.answer(500, {"error": {"code": 500, "message": f"no {broken[0]}", "type": "server_error"}})
            return
        message = say(asked)
        finish = message.pop("finish_reason", "stop")
        usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        common = {"id": "cmpl-9", "created": 9, "model": asked["model"]}
        is_chat = exchange.seen.path.endswith("/chat/completions")
        if asked.get("stream") is not True:
            part = {"message": {"role": "assistant", **message}} if is_chat else {"text": message["content"]}
            whole = {**common, "object": "chat.completion" if is_chat else "text_completion", "usage": usage}
            await exchange.answer(200, {**whole, "choices": [{"index": 0, "finish_reason": finish, **part}]})
            return
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        await exchange.begin_stream()
        for piece in _pieces(message, finish) if is_chat else [{"text": message["content"], "finish_reason": finish}]:
            await exchange.chunk(event({**common, "object": kind, "choices": [{"index": 0, **piece}]}))
        if (asked.get("stream_options") or {}).get("include_usage"):
            await exchange.chunk(event({**common, "object": kind, "choices": [], "usage": usage}))
        await exchange.chunk(DONE)
        await exchange.end_stream()

    return behave


def _pieces(message: dict[str, Any], finish: str) -> Iterator[dict[str, Any]]:
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    content = message.get("content") or ""
    for start in range(0, len(content), 7):
        yield {"delta": {"content": content[start : start + 7]}, "finish_reason": None}
    for place, call in enumerate(message.get("tool_calls", ())):
        yield {"delta": {"tool_calls": [{**call, "index": place}]}, "finish_reason": None}
    yield {"delta": {}, "finish_reason": finish}


def ollama_chat(say: Callable[[dict[str, Any]], dict[str, Any]]) -> Behaviour:
    """Answer as Ollama 0.33 does; the test fails where it would pass something over."""

    async def behave(exchange: Exchange) -> None:
        asked = exchange.seen.document
        assert not (unknown := asked.keys() - OLLAMA_CHAT), f"it would pass over {sorted(unknown)}"
        await talks(say)(exchange)

    return behave


def stock_mlx(say: Callable[[dict[str, Any]], dict[str, Any]]) -> Behaviour:
    """Answer as `mlx_lm.server` 0.32 does, which is always asked for a stream."""
    return talks(say, never=_MLX)


def llama_cpp(say: Callable[[dict[str, Any]], dict[str, Any]]) -> Behaviour:
    """Answer as llama.cpp's server did before it knew `n`; a `tool_choice` that is no text counts as `auto`."""

    async def behave(exchange: Exchange) -> None:
        choice = exchange.seen.document.get("tool_choice", "auto")
        assert isinstance(choice, str), "it would take it for auto"
        await talks(say, breaks_at=("n", "best_of", "suffix"))(exchange)

    return behave


def by_schema(asked: dict[str, Any]) -> dict[str, Any]:
    """Say what the schema of the request wants, in a small part of what schemas can say."""
    form = asked.get("response_format") or {}
    if form.get("type") != "json_schema":
        return {"content": "just words"}
    return {"content": json.dumps(_value(form["json_schema"]["schema"]))}


def _value(schema: dict[str, Any]) -> Any:
    if "anyOf" in schema:
        return _value(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _value(part) for name, part in schema.get("properties", {}).items()}
        case "integer":
            return 7
        case _:
            return "text"
