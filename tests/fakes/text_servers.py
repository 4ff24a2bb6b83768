"""I/O: servers of vectors and scores with their own shapes and errors: behaviours of `FakeUpstream`.

What they take, refuse and answer is what the servers' sources say; see the modules of `runtime/gateway/adapters`.
A word counts as a token.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from tests.fakes.encoders import vector
from tests.fakes.upstream import Behaviour, Exchange, answers

LONGEST = 512
"""Words of one text."""


def score(text: str) -> float:
    """Return a score that differs with the length of a text."""
    return len(text) / 1000


def tei(length: int = 4, *, is_reranker: bool = False, max_batch: int = 32, payload: int = 2_000_000) -> Behaviour:
    """Answer as Text Embeddings Inference 1.9 does: `/embed` and `/rerank`, of which its model can do one."""

    async def refuse(exchange: Exchange, status: int, error: str, kind: str) -> None:
        await exchange.answer(status, {"error": error, "error_type": kind})

    async def behave(exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path not in ("/embed", "/rerank"):
            await exchange.answer(404, b"")
            return
        if len(seen.body) > payload:
            message = b"Failed to buffer the request body: length limit exceeded"
            await exchange.answer(413, message, content_type="text/plain; charset=utf-8")
            return
        asked = seen.document
        key = "inputs" if seen.path == "/embed" else "texts"
        if key not in asked:
            message = f"Failed to deserialize the JSON body into the target type: missing field `{key}`".encode()
            await exchange.answer(422, message, content_type="text/plain; charset=utf-8")
            return
        texts = asked[key] if isinstance(asked[key], list) else [asked[key]]
        tokens = sum(len(str(text).split()) for text in texts)
        if not texts:
            await refuse(exchange, 400, f"`{key}` cannot be empty", "Empty")
        elif (seen.path == "/rerank") != is_reranker:
            what = "re-ranker" if seen.path == "/rerank" else "embedding"
            await refuse(exchange, 424, f"model is not a {what} model", "Backend")
        elif len(texts) > max_batch:
            message = f"batch size {len(texts)} > maximum allowed batch size {max_batch}"
            await refuse(exchange, 422, message, "Validation")
        elif (most := max(len(str(text).split()) for text in texts)) > LONGEST and not asked.get("truncate", True):
            message = f"`inputs` must have less than {LONGEST} tokens. Given: {most}"
            await refuse(exchange, 422, message, "Validation")
        elif seen.path == "/embed":
            found = [vector(str(text), asked.get("dimensions", length)) for text in texts]
            await exchange.answer(200, found, x_compute_tokens=str(tokens))
        else:
            ranks = [{"index": index, "score": score(text)} for index, text in enumerate(texts)]
            ranks.sort(key=lambda rank: -rank["score"])
            await exchange.answer(200, ranks, x_compute_tokens=str(tokens))

    return behave


def infinity(*models: str, length: int = 4, prefix: str = "", is_overloaded: bool = False) -> Behaviour:
    """Answer as Infinity 0.0.77 does: `/embeddings` and `/rerank` below its prefix."""

    async def behave(exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path not in (f"{prefix}/embeddings", f"{prefix}/rerank"):
            await exchange.answer(404, {"detail": "Not Found"})
            return
        asked = seen.document
        given = asked.get("input" if seen.path.endswith("embeddings") else "documents")
        texts = given if isinstance(given, list) else [given]
        assert asked.get("modality", "text") == "text", "it would fetch what the texts name"
        if not 1 <= len(texts) <= 2048 or not all(isinstance(text, str) for text in texts):
            await exchange.answer(422, {"detail": [{"type": "list_type", "loc": ["body", "input"], "msg": "..."}]})
        elif asked["model"] not in models:
            message = f"Invalid model: Engine for model name {asked['model']} not found. Available: {models}"
            await _refuse(exchange, 400, message)
        elif is_overloaded:
            await _refuse(exchange, 429, f"model {asked['model']} is currently overloaded")
        elif seen.path.endswith("embeddings"):
            is_base64 = asked.get("encoding_format") == "base64"
            found = [vector(text, length) for text in texts]
            data = [
                {"object": "embedding", "embedding": _base64(each) if is_base64 else each, "index": index}
                for index, each in enumerate(found)
            ]
            await exchange.answer(200, {"object": "list", "data": data, **_rest(asked["model"], len(texts))})
        else:
            results = [
                {"relevance_score": score(text), "index": index, "document": None} for index, text in enumerate(texts)
            ]
            results.sort(key=lambda result: -result["relevance_score"])
            await exchange.answer(200, {"object": "rerank", "results": results, **_rest(asked["model"], len(texts))})

    return behave


def ollama(*models: str, length: int = 4, cuts: bool = True) -> Behaviour:
    """Answer as Ollama 0.12 does: `/api/embed`, OpenAI's chat and vectors, nothing that ranks.

    Without `cuts` its OpenAI path for vectors is as it would be if it did not cut long texts in silence.
    """
    chat = answers()

    async def behave(exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path not in ("/api/embed", "/v1/embeddings", "/v1/chat/completions"):
            await exchange.answer(404, b"404 page not found", content_type="text/plain")
            return
        asked = seen.document
        if asked["model"] not in models:
            message = f'model "{asked["model"]}" not found, try pulling it first'
            shown = message if seen.path == "/api/embed" else {"message": message, "type": "api_error", "code": None}
            await exchange.answer(404, {"error": shown})
        elif seen.path == "/v1/chat/completions":
            await chat(exchange)
        else:
            await _embed(exchange, asked)

    async def _embed(exchange: Exchange, asked: dict[str, Any]) -> None:
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        if not all(isinstance(text, str) for text in texts):
            await exchange.answer(400, {"error": "invalid input type"})
            return
        is_own = exchange.seen.path == "/api/embed"
        is_cut = asked.get("truncate", True) if is_own else cuts
        if not is_cut and any(len(text.split()) > LONGEST for text in texts):
            await exchange.answer(400, {"error": "the input length exceeds the context length"})
            return
        found = [vector(text, asked.get("dimensions", length)) for text in texts]
        tokens = sum(len(text.split()) for text in texts)
        if is_own:
            document = {"model": asked["model"], "embeddings": found, "total_duration": 1, "prompt_eval_count": tokens}
        else:
            data = [{"object": "embedding", "embedding": each, "index": index} for index, each in enumerate(found)]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            document = {"object": "list", "data": data, "model": asked["model"], "usage": usage}
        await exchange.answer(200, document)

    return behave


async def _refuse(exchange: Exchange, status: int, message: str) -> None:
    await exchange.answer(status, {"error": {"message": message, "type": None, "param": None, "code": status}})


def _rest(model: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"model": model, "usage": usage, "id": "infinity-1", "created": 1}


def _base64(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
