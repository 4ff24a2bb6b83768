"""Pure: requests that are more than a helper takes at once, in parts: texts for vectors, documents for scores.

Vectors of texts, and scores of documents, do not depend on what else is in the request. (Rerankers that compare the
documents with each other, such as jina-reranker-v3, do so within each part only.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from runtime.gateway.adapters import ranking, vectors
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body


def split(ask: Ask, most: int, largest: int) -> list[Ask]:
    """Return the request in parts of at most `most` texts and about `largest` bytes; one that fits is its only part.

    The bodies of the parts have no bytes yet. What cannot be split is one part, however large it is.
    """
    key = {vectors.PATH: "input", ranking.PATH: "documents"}.get(ask.path, "")
    texts = ask.body.document.get(key)
    if not isinstance(texts, list) or _is_one(texts) or (len(texts) <= most and len(ask.body.raw) <= largest):
        return [ask]
    if len(ask.body.raw) <= largest:
        # What is small as a whole is so in each of its parts: nothing need be measured.
        chunks = [texts[start : start + most] for start in range(0, len(texts), most)]
    else:
        chunks = list(_chunks(texts, most, largest - _size(ask.body.document.get("query"))))
    return [_part(ask, key, chunk) for chunk in chunks] if len(chunks) > 1 else [ask]


def join(ask: Ask, parts: Sequence[Ask], answers: Sequence[bytes]) -> bytes:
    """Return the one answer that those to the parts make; raises `BadAnswerError` where they do not go together."""
    match ask.reading:
        case vectors.VectorReading() as reading:
            return reading.read(vectors.joined(answers))
        case ranking.RankReading() as reading:
            sizes = [len(part.body.document["documents"]) for part in parts]
            return reading.read(ranking.joined(answers, sizes))
        case _:
            raise AssertionError("only requests for vectors and scores are split")


def _is_one(texts: Sequence[Any]) -> bool:
    """Tell whether a list is one text: token numbers."""
    return not texts or isinstance(texts[0], int)


def _chunks(texts: Sequence[Any], most: int, largest: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for text in texts:
        more = _size(text)
        if chunk and (len(chunk) == most or size + more > largest):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += more
    yield chunk


def _size(text: object) -> int:
    """Return how many bytes a value takes in a body, its comma counted."""
    return len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) + 1


def _part(ask: Ask, key: str, chunk: list[Any]) -> Ask:
    document = {name: value for name, value in ask.body.document.items() if name != "top_n"} | {key: chunk}
    body = Body(b"", document, ask.body.model, is_stream=False)
    match ask.reading:
        case vectors.VectorReading() as reading:
            return replace(ask, body=body, reading=replace(reading, count=len(chunk), asked=document))
        case ranking.RankReading() as reading:
            part = replace(reading, documents=chunk, top_n=len(chunk), has_documents=False)
            return replace(ask, body=body, reading=part)
        case _:
            raise AssertionError("only requests for vectors and scores are split")
