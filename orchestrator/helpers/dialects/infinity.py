"""Pure: Infinity. Shape: michaelfeil/infinity `infinity_emb/fastapi_schemas/pymodels.py`, `GET /models`: rows with
`owned_by: infinity`; its first versions gave one row where later ones give a list.
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, openai_models, owners
from orchestrator.observed import HelperSeen

MODELS = "/models"


def _is_spoken(answers: Answers) -> bool:
    return any("infinity" in owners(answers, path) for path in (MODELS, OPENAI_MODELS))


def _read(answers: Answers) -> HelperSeen:
    served = names(openai_models(answers, MODELS) or openai_models(answers))  # `--url-prefix /v1` moves the list
    return HelperSeen(engine="infinity", present=served, loaded=served)


INFINITY = Dialect("infinity", (MODELS, OPENAI_MODELS), (), _is_spoken, _read)
