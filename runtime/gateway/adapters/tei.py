"""Pure: how Text Embeddings Inference is asked for vectors and scores, in its own words.

Its OpenAI path cannot be told whether a long text may be cut, and cuts by default, so `/embed` and `/rerank` are asked.
Read in text-embeddings-inference 1.9, `router/src/http`: `types.rs` (EmbedRequest, RerankRequest, Rank), `server.rs`
(at most `max_client_batch_size` texts, 422 for more) and `main.rs` (defaults: 32 texts, bodies of 2 MB). How many
tokens an answer took stands in the header `x-compute-tokens` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.gateway.adapters import ranking, vectors
from runtime.gateway.adapters.refusals import refuse_others, refused, truth
from runtime.gateway.attempt import NO_HEADERS, Ask, BadAnswerError, Reading
from runtime.gateway.bodies import Body

ENGINE = "tei"
MAX_BATCH = 32
"""Texts in a request, where the helper's `max_batch` does not say another number."""
LARGEST_BODY = 1_900_000
"""Bytes of a request: a little less than `--payload-limit` is where nobody set it."""

_TOKENS = b"x-compute-tokens"


def adapt(ask: Ask) -> Ask:
    """Return the request in its words; raises `ApiError` with status 400 for what it cannot do."""
    document = ask.body.document
    match ask.path, ask.reading:
        case vectors.PATH, vectors.VectorReading() as wanted:
            refuse_others(ENGINE, document, {"model", "input", "encoding_format", "dimensions", "truncate"})
            given = document["input"]
            inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
            # Vectors of cut texts are those of other texts: nobody gets them who did not ask for them.
            made: dict[str, Any] = {"model": ask.body.model, "inputs": inputs}
            made["truncate"] = truth(ENGINE, document, "truncate", False)
            if document.get("dimensions") is not None:
                made["dimensions"] = document["dimensions"]
            return _made(ask, "/embed", made, EmbedReading(wanted, ask.body.model))
        case ranking.PATH, ranking.RankReading() as wanted:
            known = {"model", "query", "documents", "top_n", "return_documents", "truncate"}
            refuse_others(ENGINE, document, known)
            made = {"model": ask.body.model, "query": document["query"], "texts": document["documents"]}
            made["truncate"] = truth(ENGINE, document, "truncate", True)
            return _made(ask, "/rerank", made, RankReading(wanted, ask.body.model))
        case _:
            raise refused(ENGINE, "messages", "cannot be answered: it has no chat", "unsupported_parameter")


def _made(ask: Ask, path: str, document: Mapping[str, Any], reading: Reading) -> Ask:
    # It serves one model and passes over the name of another.
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, path=path, body=Body(raw, document, ask.body.model, is_stream=False), reading=reading)


@dataclass(frozen=True, slots=True)
class EmbedReading:
    """Vectors as a bare list of lists."""

    wanted: vectors.VectorReading
    model: str

    def read(self, raw: bytes, headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        """Return the answer in OpenAI's shape; raises `BadAnswerError` or `WrongDimensionError`."""
        found = vectors.listed(raw, 0)
        return self.wanted.read(vectors.written(found, self.model, _tokens(headers)))


@dataclass(frozen=True, slots=True)
class RankReading:
    """Scores as a bare list, with the tokens in a header."""

    wanted: ranking.RankReading
    model: str

    def read(self, raw: bytes, headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        """Return the answer in Jina's shape; raises `BadAnswerError`."""
        try:
            results = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadAnswerError("no list of scores") from error
        document = {"object": "list", "model": self.model, "usage": {"total_tokens": _tokens(headers)}}
        return self.wanted.read(json.dumps({**document, "results": results}).encode())


def _tokens(headers: Mapping[bytes, bytes]) -> int:
    said = headers.get(_TOKENS, b"").strip()
    return int(said) if said.isdigit() and len(said) < 16 else 0
