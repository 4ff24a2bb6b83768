"""I/O: a fake engine that always says one text, goes on with any beginning of it, and may break off on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.fakes.upstream import DONE, Behaviour, Exchange, event

TEXT = "One two  three.\n\nFour \u00e9\u4f60 five,\n    six \U0001f600 seven. "
PIECE = 4
"""Characters of one token."""


def chunk(name: str, *, is_chat: bool, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """Return one event of a stream; `delta` has a `content` in either kind."""
    said = {"delta": delta} if is_chat else {"text": delta.get("content", ""), "logprobs": None}
    return event(
        {
            "id": f"id-{name}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": sum(name.encode()),
            "model": f"model-{name}",
            "choices": [{"index": 0, **said, "finish_reason": finish}],
            **more,
        }
    )


def pieces(text: str) -> list[str]:
    """Cut a text into what the engine says in one event each."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def stream(
    name: str, text: str, *, is_chat: bool = True, usage: tuple[int, int] | None = None, finish: str = "stop"
) -> list[bytes]:
    """Return the events of a whole answer; `usage` are the tokens of the prompt and of the answer."""
    said = [chunk(name, is_chat=is_chat, delta={"content": piece}) for piece in pieces(text)]
    role = [chunk(name, is_chat=True, delta={"role": "assistant", "content": ""})] if is_chat else []
    ended = [chunk(name, is_chat=is_chat, delta={}, finish=finish)]
    told = []
    if usage is not None:
        read, made = usage
        counted = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        told = [event({"id": f"id-{name}", "choices": [], "usage": counted})]
    return [*role, *said, *ended, *told, DONE]


def begun(document: dict[str, Any]) -> str:
    """Return the beginning of the answer that a request shows; fails where it is not shown as engines want it."""
    if "prompt" in document:
        prompt = document["prompt"]
        return prompt if isinstance(prompt, str) else prompt[0]
    last = document["messages"][-1]
    if last["role"] != "assistant":
        return ""
    assert isinstance(last["content"], str)
    return last["content"]


def says(name: str, text: str = TEXT, *, events: int | None = None, then: str = "reset") -> Behaviour:
    """Say the rest of a text; break off after so many events, where a number is given.

    `then` is `reset`, `hang up`, `end`, `error` or `silence`. Prompts of text completions are `go:` and the beginning.
    """

    async def behave(exchange: Exchange) -> None:
        document = exchange.seen.document
        is_chat = "messages" in document
        known = begun(document).removeprefix("go:")
        if not text.startswith(known):
            await exchange.answer(400, {"error": {"message": f"not my words: {known!r}", "type": "t", "code": None}})
            return
        rest = text[len(known) :]
        usage = (10 + len(pieces(known)), len(pieces(rest)))
        wants = (document.get("stream_options") or {}).get("include_usage") is True
        whole = stream(name, rest, is_chat=is_chat, usage=usage if wants else None)
        await _send(exchange, whole if events is None else whole[:events], None if events is None else then)

    return behave


async def _send(exchange: Exchange, events: Sequence[bytes], then: str | None) -> None:
    await exchange.begin_stream()
    for each in events:
        await exchange.chunk(each)
    match then:
        case "reset":
            # What is on its way must arrive before the reset, which would discard it.
            await asyncio.sleep(0.05)
            exchange.reset()
        case "hang up":
            exchange.hang_up()
        case "error":
            await exchange.chunk(event({"error": {"message": "out of memory", "type": "server_error"}}))
            await exchange.end_stream()
        case "silence":
            await exchange.silence()
        case _:
            await exchange.end_stream()
