"""Pure: stock `mlx_lm.server`. Shape: mlx_lm 0.32 `server.py`, `handle_models_request`: rows without an owner, the hub
cache's models and the path that it was started with; it is Python's `http.server`, which says so in `Server`.
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, openai_models, owners, said
from orchestrator.observed import HelperSeen

DEFAULT_MODEL = "default_model"
"""The name under which it answers with the model that it was started with."""


def _is_spoken(answers: Answers) -> bool:
    answer = answers.get(OPENAI_MODELS)
    is_python = answer is not None and answer.server.startswith("BaseHTTP")
    return is_python and "data" in said(answers, OPENAI_MODELS) and not owners(answers)


def _read(answers: Answers) -> HelperSeen:
    # what it holds in memory it does not tell: it loads whatever a request names
    return HelperSeen(engine="mlx_lm.server", present=names(openai_models(answers)) | {DEFAULT_MODEL})


MLX_LM = Dialect("mlx_lm.server", (OPENAI_MODELS,), (), _is_spoken, _read)
