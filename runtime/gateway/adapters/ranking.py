"""Pure: what clients ask of rerankers, what the answers must be, and the answer of a role that may skip the task.

Servers agree on the request and the results (Cohere's and Jina's shape) but not on the rest: some do not sort, some do
not know `top_n` or `return_documents`. So these are done here, and endpoints get texts only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.gateway.attempt import NO_HEADERS, BadAnswerError
from runtime.gateway.bodies import Body, body_of, invalid, read_document

PATH = "/v1/rerank"
MOST_DOCUMENTS = 10_000
"""In a request. An endpoint may get each of them in a request of its own."""

_OURS = frozenset({"documents", "return_documents"})
"""What endpoints are not asked for as the client wrote it."""


@dataclass(frozen=True, slots=True)
class RankReading:
    """What the answer to one request has to be."""

    model: str
    documents: Sequence[str]
    top_n: int
    """How many results the client wants: at most as many as there are documents."""
    has_documents: bool = False
    """The client wants the documents back."""

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        """Return the answer for the client, best first; raises `BadAnswerError`."""
        try:
            document = _in_shape(json.loads(raw))
            found = {result["index"]: result for result in document["results"]}
            ranked = sorted(found.values(), key=lambda result: -_score(result))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadAnswerError("no list of results with an index and a score") from error
        if not found.keys() <= set(range(len(self.documents))) or len(found) < len(document["results"]):
            raise BadAnswerError("results for documents that were not sent, or twice for one")
        if len(ranked) < self.top_n:
            raise BadAnswerError(f"{len(ranked)} results, {self.top_n} were asked for")
        results = [self._result(result) for result in ranked[: self.top_n]]
        return json.dumps({**document, "results": results}, ensure_ascii=False).encode(errors="replace")

    def skipped(self) -> bytes:
        """Return the documents in the order in which they came, marked as not ranked."""
        results = [
            {"index": index, "relevance_score": 0.0, "ranked": False, **self._document(index)}
            for index in range(self.top_n)
        ]
        document = {"object": "list", "model": self.model, "results": results}
        return json.dumps(document, ensure_ascii=False).encode(errors="replace")

    def _result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        index = result["index"]
        more = {key: value for key, value in result.items() if key not in _NAMED}
        return {"index": index, "relevance_score": _score(result), **more, **self._document(index)}

    def _document(self, index: int) -> dict[str, Any]:
        return {"document": {"text": self.documents[index]}} if self.has_documents else {}


def joined(answers: Sequence[bytes], sizes: Sequence[int]) -> bytes:
    """Return one answer of several that were read; `sizes` is how many documents each of them was about."""
    documents = [json.loads(raw) for raw in answers]
    results: list[dict[str, Any]] = []
    start = 0
    for document, size in zip(documents, sizes, strict=True):
        results += [{**result, "index": result["index"] + start} for result in document["results"]]
        start += size
    usages = [usage for document in documents if isinstance(usage := document.get("usage"), dict)]
    names = dict.fromkeys(name for usage in usages for name, value in usage.items() if type(value) is int)
    usage = {name: sum(each[name] for each in usages if type(each.get(name)) is int) for name in names}
    return json.dumps({**documents[0], "usage": usage, "results": results}, ensure_ascii=False).encode()


def _in_shape(document: Any) -> dict[str, Any]:
    """Return an answer with its results under `results`: some servers give a bare list, some call it `data`."""
    if isinstance(document, list):
        return {"object": "list", "results": document}
    if not isinstance(document, dict):
        raise TypeError(f"an answer is an object or a list, not {type(document).__name__}")
    if "results" not in document and isinstance(document.get("data"), list):
        return {"results" if key == "data" else key: value for key, value in document.items()}
    return document


_NAMED = frozenset({"index", "relevance_score", "score", "document", "text"})


def parse_rerank(raw: bytes) -> tuple[Body, RankReading]:
    """Check the body of a request to rerank; return what endpoints get, and what their answers have to be.

    Raises `ApiError` with status 400.
    """
    document = read_document(raw)
    if not isinstance(document.get("query"), str) or not document["query"]:
        raise invalid("query", "must be a text that is not empty")
    given = document.get("documents")
    if not isinstance(given, list) or not given:
        raise invalid("documents", "must be a list with at least one document")
    if len(given) > MOST_DOCUMENTS:
        raise invalid("documents", f"has {len(given)} documents; a request may have {MOST_DOCUMENTS}")
    texts = [_text(each, f"documents[{index}]") for index, each in enumerate(given)]
    top_n, wants = document.get("top_n"), document.get("return_documents")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise invalid("top_n", "must be a whole number of at least 1")
    if wants is not None and not isinstance(wants, bool):
        raise invalid("return_documents", "must be true or false")
    body = body_of(raw, document)
    if body.is_stream:
        raise invalid("stream", "cannot be asked for: results come as a whole")
    reading = RankReading(body.model, texts, min(top_n or len(texts), len(texts)), wants is True)
    if texts == given and wants is None:
        return body, reading
    sent = {**{key: value for key, value in document.items() if key not in _OURS}, "documents": texts}
    return Body(json.dumps(sent).encode(), sent, body.model, is_stream=False), reading


def probe_body(model: str) -> tuple[Body, RankReading]:
    """Return the smallest request that shows that a model ranks, and what must come back."""
    texts = ("Yes.", "The sea is deep.")
    document: Mapping[str, Any] = {"model": model, "query": "Are you there?", "documents": list(texts)}
    body = Body(json.dumps(document).encode(), document, model, is_stream=False)
    return body, RankReading(model, texts, len(texts))


def _text(document: object, where: str) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise invalid(where, "must be a text, or an object with a `text`")
    return text


def _score(result: Mapping[str, Any]) -> float:
    score = result["relevance_score"] if "relevance_score" in result else result["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise TypeError("no score")
    return float(score)
