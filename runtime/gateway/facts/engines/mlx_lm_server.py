"""Pure: stock `mlx_lm.server`, which says next to nothing: mlx_lm 0.32 `server.py`, `handle_models_request`.

Its list is the machine's hub cache and names no context; on a machine without a cache it is 200 with an empty body
(measured), so `/health` has to say whether it is there. It ignores `response_format` and reads no images.
"""

from __future__ import annotations

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, said
from runtime.gateway.facts.known import Facts

HEALTH = Question("/health")


def _read(answers: Answers, _model: str) -> Facts | None:
    if said(answers, HEALTH).get("status") != "ok":
        return None
    return Facts(source="mlx_lm.server", cannot=frozenset({"json_schema", "vision", "audio", "embedding", "rerank"}))


MLX_LM_SERVER = Reader((HEALTH,), nothing_more, _read)
