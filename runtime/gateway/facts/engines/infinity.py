"""Pure: Infinity. Shape: michaelfeil/infinity `infinity_emb/fastapi_schemas/pymodels.py`, `GET /models`: rows with
`capabilities` (`embed`, `rerank`, `classify`, `image_embed`, ...); its first versions gave one row for a list.

It loads what it serves before it listens.
"""

from __future__ import annotations

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, row_of, said
from runtime.gateway.facts.known import Capability, Facts
from schemas.foreign import rows, text, texts

MODELS = Question("/models")
_WORDS: dict[str, Capability] = {"embed": "embedding", "rerank": "rerank", "image_embed": "vision"}
_ALL: frozenset[Capability] = frozenset({"embedding", "rerank", "vision", "completion"})


def _read(answers: Answers, model: str) -> Facts | None:
    row = row_of(rows(said(answers, MODELS).get("data")), model, "id")
    if not row:
        return None
    told = texts(row.get("capabilities"))
    can = frozenset(word for name, word in _WORDS.items() if name in told)
    cannot = _ALL - can if told else frozenset[Capability]()
    return Facts(source="infinity", can=can, cannot=cannot, format=text(row.get("backend")), is_loaded=True)


INFINITY = Reader((MODELS,), nothing_more, _read)
