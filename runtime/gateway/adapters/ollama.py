"""Pure: how Ollama is asked for vectors: by `/api/embed`, its own path. Chat goes to its OpenAI path as it comes.

Its OpenAI path for vectors cuts texts that are too long without a word; `/api/embed` does so only where `truncate` says
so. Read in ollama `docs/api.md`, "Generate Embeddings": `embeddings` is a list of lists, `prompt_eval_count` the
tokens. It has no path for reranking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.gateway.adapters import vectors
from runtime.gateway.adapters.refusals import refuse_others, refused, truth
from runtime.gateway.attempt import NO_HEADERS, Ask, BadAnswerError
from runtime.gateway.bodies import Body

ENGINE = "ollama"

_LIST = re.compile(rb'"embeddings"\s*:\s*')
_TOKENS = re.compile(rb'"prompt_eval_count"\s*:\s*(\d{1,15})')


def adapt(ask: Ask) -> Ask:
    """Return the request in its words; raises `ApiError` with status 400 for what it cannot do."""
    if ask.path != vectors.PATH or not isinstance(ask.reading, vectors.VectorReading):
        return ask
    document = ask.body.document
    refuse_others(ENGINE, document, {"model", "input", "encoding_format", "dimensions", "truncate"})
    given = document["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts[0], str):
        raise refused(ENGINE, "input", "must be texts: tokens are not supported", "unsupported_parameter")
    truncate = truth(ENGINE, document, "truncate", False)
    made: dict[str, Any] = {"model": ask.body.model, "input": texts, "truncate": truncate}
    if document.get("dimensions") is not None:
        made["dimensions"] = document["dimensions"]
    raw = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    body = Body(raw, made, ask.body.model, is_stream=False)
    return replace(ask, path="/api/embed", body=body, reading=EmbedReading(ask.reading, ask.body.model))


@dataclass(frozen=True, slots=True)
class EmbedReading:
    """Vectors as a list of lists beside other fields."""

    wanted: vectors.VectorReading
    model: str

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        """Return the answer in OpenAI's shape; raises `BadAnswerError` or `WrongDimensionError`."""
        start = _LIST.search(raw)
        if start is None:
            raise BadAnswerError("no list of vectors")
        tokens = _TOKENS.search(raw)
        found = vectors.listed(raw, start.end())
        return self.wanted.read(vectors.written(found, self.model, int(tokens[1]) if tokens else 0))
