"""Pure: vLLM. Shapes: vllm-project/vllm `entrypoints/openai` (ModelCard with `owned_by: vllm` and `max_model_len`;
`GET /version` with `version`).
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, numbers, openai_models, owners, said
from orchestrator.observed import HelperSeen
from schemas.foreign import text

VERSION = "/version"


def _is_spoken(answers: Answers) -> bool:
    return "vllm" in owners(answers)


def _read(answers: Answers) -> HelperSeen:
    served = openai_models(answers)
    return HelperSeen(
        engine="vllm",
        version=text(said(answers, VERSION).get("version")),
        present=names(served),
        loaded=names(served),  # it loads what it serves before it listens
        context=numbers(served, "id", "max_model_len"),
    )


VLLM = Dialect("vllm", (OPENAI_MODELS,), (VERSION,), _is_spoken, _read)
