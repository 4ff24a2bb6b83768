"""Pure: ask a loaded encoder as a request would, without a worker around it."""

import json
from collections.abc import Callable
from typing import Any

from runtime.worker.encode.encoder import Encoder
from runtime.worker.encode.request import parse_embedding, parse_rerank
from runtime.worker.encode.work import Work, embedding_work, rerank_work


def ask(encoder: Encoder, work: Callable[..., Work], **body: Any) -> Work:
    """Return a request's work."""
    parse = parse_embedding if work is embedding_work else parse_rerank
    return work(parse(body, "tiny"), encoder.reading, "tiny")


def ranking(encoder: Encoder, query: str, documents: list[Any], **more: Any) -> list[dict[str, Any]]:
    """Return the results of a ranking."""
    work = ask(encoder, rerank_work, query=query, documents=documents, **more)
    return json.loads(work.finish(encoder.compute(work.rows)))["results"]


def embedding(encoder: Encoder, **body: Any) -> dict[str, Any]:
    """Return the answer to a request for vectors."""
    work = ask(encoder, embedding_work, **body)
    return json.loads(work.finish(encoder.compute(work.rows)))
