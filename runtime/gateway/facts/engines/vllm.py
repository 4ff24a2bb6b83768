"""Pure: vLLM. Shape: vllm-project/vllm `entrypoints/openai` (ModelCard with `max_model_len`, `root`, `parent`).

It loads what it serves before it listens, and says nothing else: whether it calls tools depends on how it was started.
"""

from __future__ import annotations

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, row_of, said
from runtime.gateway.facts.known import Facts
from schemas.foreign import count, rows

MODELS = Question("/v1/models")


def _read(answers: Answers, model: str) -> Facts | None:
    row = row_of(rows(said(answers, MODELS).get("data")), model, "id")
    return Facts(source="vllm", context_length=count(row.get("max_model_len")), is_loaded=True) if row else None


VLLM = Reader((MODELS,), nothing_more, _read)
