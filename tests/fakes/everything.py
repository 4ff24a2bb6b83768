"""I/O: a fake endpoint that answers every kind of request properly, whatever its parameters say.

As a program: `python -m tests.fakes.everything --port N`.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from tests.fakes.encoders import embeds, ranks
from tests.fakes.upstream import DONE, FINISH, ROLE, Behaviour, Exchange, FakeUpstream, completion, event, refuses, word

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LONGEST_VECTOR = 256


async def _embed(exchange: Exchange) -> None:
    length = exchange.seen.document.get("dimensions") or 4
    if length > LONGEST_VECTOR:
        message = f"'dimensions' is {length}, and the vectors of this model have at most {LONGEST_VECTOR} numbers."
        await refuses(400, {"error": {"message": message, "type": "invalid_request_error", "code": None}})(exchange)
        return
    await embeds(length)(exchange)


_ENDINGS: dict[str, Behaviour] = {"/embeddings": _embed, "/rerank": ranks()}


async def answer_everything(exchange: Exchange) -> None:
    """Answer chat, text completions, embeddings and reranking; models are listed."""
    path = exchange.seen.path
    behave = next((found for ending, found in _ENDINGS.items() if path.endswith(ending)), None)
    if behave is not None:
        await behave(exchange)
    elif not path.endswith("/completions"):
        await exchange.answer(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
    elif exchange.seen.document.get("stream") is not True:
        await exchange.answer(200, completion(path, "w0 w1 "))
    else:
        await exchange.begin_stream()
        for piece in _chat() if path.endswith("/chat/completions") else _text():
            await exchange.chunk(piece)
        if (exchange.seen.document.get("stream_options") or {}).get("include_usage"):
            await exchange.chunk(event(_chunk(path, [], usage=USAGE)))
        await exchange.chunk(DONE)
        await exchange.end_stream()


def _chat() -> list[bytes]:
    return [ROLE, word(0), word(1), FINISH]


def _text() -> list[bytes]:
    texts = ((f"w{index} ", None if index == 0 else "stop") for index in range(2))
    return [event(_chunk("", [{"index": 0, "text": text, "finish_reason": reason}])) for text, reason in texts]


def _chunk(path: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    kind = "chat.completion.chunk" if path.endswith("/chat/completions") else "text_completion"
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "fake", "choices": choices, **more}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()

    async def run() -> None:
        await FakeUpstream(answer_everything).start(arguments.port)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
