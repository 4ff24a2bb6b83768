"""Pure: how Infinity is asked for vectors and scores.

Its paths are OpenAI's and Jina's without `/v1` (`--url-prefix` moves them: then the helper's `url` ends with it). It
takes at most 2048 texts in a request and cuts what is too long without a word. Bodies are made anew of what it knows:
with `modality` a client would make it fetch addresses. Read in infinity 0.0.77, `infinity_server.py` and
`fastapi_schemas/pymodels.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace

from runtime.gateway.adapters import ranking, vectors
from runtime.gateway.adapters.refusals import refuse_others, refused, truth
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body

ENGINE = "infinity"
MAX_BATCH = 2048
"""Texts in a request: `ITEMS_LIMIT` in its `fastapi_schemas/pydantic_v2.py`."""

_WORDS = {
    vectors.PATH: ("/embeddings", ("model", "input", "encoding_format", "dimensions")),
    ranking.PATH: ("/rerank", ("model", "query", "documents")),
}
_OURS = {"truncate", "top_n", "return_documents"}
"""What is done here, or is what it does anyway."""


def adapt(ask: Ask) -> Ask:
    """Return the request in its words; raises `ApiError` with status 400 for what it cannot do."""
    if ask.path not in _WORDS:
        raise refused(ENGINE, "messages", "cannot be answered: it has no chat", "unsupported_parameter")
    path, words = _WORDS[ask.path]
    document = ask.body.document
    refuse_others(ENGINE, document, {*words, *_OURS})
    given = document.get("input")
    if isinstance(given, list) and not isinstance(given[0], str):
        raise refused(ENGINE, "input", "must be texts: tokens are not supported", "unsupported_parameter")
    if not truth(ENGINE, document, "truncate", True):
        raise refused(ENGINE, "truncate", "must be true: it always cuts what is too long", "unsupported_parameter")
    made = {key: document[key] for key in words if document.get(key) is not None} | {"model": ask.body.model}
    raw = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, path=path, body=Body(raw, made, ask.body.model, is_stream=False))
