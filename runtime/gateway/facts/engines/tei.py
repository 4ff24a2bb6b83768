"""Pure: Text Embeddings Inference. Shape: huggingface/text-embeddings-inference `docs/openapi.json`, `GET /info`.

One model a process, loaded before it listens; it answers any name.
"""

from __future__ import annotations

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, said
from runtime.gateway.facts.known import Capability, Facts
from schemas.foreign import count, fields, text

INFO = Question("/info")
_KINDS: dict[str, Capability] = {"embedding": "embedding", "reranker": "rerank"}
_BOTH: frozenset[Capability] = frozenset({"embedding", "rerank", "completion"})


def _read(answers: Answers, _model: str) -> Facts | None:
    info = said(answers, INFO)
    if not {"model_id", "max_input_length"} <= info.keys():
        return None
    kinds = fields(info.get("model_type"))
    can = frozenset(word for name, word in _KINDS.items() if name in kinds)
    return Facts(
        source="tei",
        context_length=count(info.get("max_input_length")),
        can=can,
        cannot=_BOTH - can if kinds else frozenset(),
        quantisation=text(info.get("model_dtype")),
        is_loaded=True,
    )


TEI = Reader((INFO,), nothing_more, _read)
