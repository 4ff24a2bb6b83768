"""Pure: any server with OpenAI's model list that is none of the others; its owner's name is the best there is."""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, numbers, openai_models, owners, said
from orchestrator.observed import HelperSeen

UNKNOWN = "openai-compatible"


def _is_spoken(answers: Answers) -> bool:
    return "data" in said(answers, OPENAI_MODELS)


def _read(answers: Answers) -> HelperSeen:
    served, called = openai_models(answers), owners(answers)
    engine = called.pop() if len(called) == 1 else UNKNOWN
    return HelperSeen(
        engine=engine if engine.isprintable() and len(engine) <= 40 else UNKNOWN,
        present=names(served),
        context=numbers(served, "id", "max_model_len", "context_length"),
    )


OPENAI = Dialect(UNKNOWN, (OPENAI_MODELS,), (), _is_spoken, _read)
