"""I/O: fake embedding and reranking endpoints: behaviours of `FakeUpstream`, as good or as bad as a test wants them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

from tests.fakes.upstream import Behaviour, Exchange


def vector(text: str, length: int) -> list[float]:
    """Return numbers that are the same for the same text, exact in float32."""
    seed = sum(text.encode())
    return [((seed + place) % 64 - 32) / 32 for place in range(length)]


def embeds(
    length: int = 4, *, knows_base64: bool = True, change: Callable[[dict[str, Any]], Any] | None = None
) -> Behaviour:
    """Answer `/v1/embeddings` with vectors of a length; `change` edits the document before it is sent."""

    async def behave(exchange: Exchange) -> None:
        asked = exchange.seen.document
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        texts = [texts] if isinstance(texts[0], int) else texts
        is_base64 = knows_base64 and asked.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _form(vector(str(text), length), is_base64=is_base64)}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        document: dict[str, Any] = {"object": "list", "model": asked["model"], "data": data, "usage": usage}
        if change is not None:
            change(document)
        await exchange.answer(200, document)

    return behave


def ranks(*, change: Callable[[dict[str, Any]], Any] | None = None) -> Behaviour:
    """Answer `/v1/rerank` as plain servers do: longer documents score higher, not sorted, `top_n` unknown."""

    async def behave(exchange: Exchange) -> None:
        asked = exchange.seen.document
        results = [
            {"index": index, "relevance_score": len(text) / 100} for index, text in enumerate(asked["documents"])
        ]
        document = {"object": "list", "model": asked["model"], "results": results, "usage": {"total_tokens": 9}}
        if change is not None:
            change(document)
        await exchange.answer(200, document)

    return behave


def _form(numbers: list[float], *, is_base64: bool) -> list[float] | str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode() if is_base64 else numbers
