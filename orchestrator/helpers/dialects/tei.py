"""Pure: Text Embeddings Inference. Shape: huggingface/text-embeddings-inference `docs/openapi.json`, `GET /info`;
one model a process. `tokenization_workers` tells it from Text Generation Inference, which has an `/info` too.
"""

from __future__ import annotations

from orchestrator.helpers.answers import Answers, Dialect, said
from orchestrator.observed import HelperSeen
from schemas.foreign import count, text

INFO = "/info"


def _is_spoken(answers: Answers) -> bool:
    return {"model_id", "tokenization_workers"} <= said(answers, INFO).keys()


def _read(answers: Answers) -> HelperSeen:
    info = said(answers, INFO)
    model, context = text(info.get("model_id")), count(info.get("max_input_length"))
    served = frozenset({model} if model else ())
    return HelperSeen(
        engine="tei",
        version=text(info.get("version")),
        present=served,
        loaded=served,
        context={model: context} if model and context else {},
        max_batch=count(info.get("max_client_batch_size")),
    )


TEI = Dialect("tei", (INFO,), (), _is_spoken, _read)
