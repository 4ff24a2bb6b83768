"""Pure: stock `mlx_lm.server`. Shape: mlx_lm 0.32 `server.py`, `handle_models_request`: rows without an owner, the hub
cache's models and the path that it was started with; it is Python's `http.server`, which says so in `Server`.

On a machine without a hub cache its list is 200 with an empty body (measured): then `/health` has to do.
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, openai_models, owners, said
from orchestrator.observed import HelperSeen

HEALTH = "/health"
DEFAULT_MODEL = "default_model"
"""The name under which it answers with the model that it was started with."""


def _is_spoken(answers: Answers) -> bool:
    answer = answers.get(OPENAI_MODELS)
    if answer is None or answer.status != 200 or not answer.server.startswith("BaseHTTP"):
        return False
    if answer.document is None:
        return said(answers, HEALTH).get("status") == "ok"
    return "data" in said(answers, OPENAI_MODELS) and not owners(answers)


def _read(answers: Answers) -> HelperSeen:
    # what it holds in memory it does not tell: it loads whatever a request names
    return HelperSeen(engine="mlx_lm.server", present=names(openai_models(answers)) | {DEFAULT_MODEL})


MLX_LM = Dialect("mlx_lm.server", (OPENAI_MODELS, HEALTH), (), _is_spoken, _read)
