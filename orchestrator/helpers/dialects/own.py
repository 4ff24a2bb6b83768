"""Pure: orchestrate's own worker and gateway, run by another stack or by hand. Shapes: `schemas.messages`; both name
`orchestrate` as the owner of their models, only a worker has a phase at `/ready`.
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, openai_models, owners, said
from orchestrator.observed import HelperSeen
from schemas.foreign import count, fields, text

READY, STATUS = "/ready", "/status"
OWNER = "orchestrate"


def _is_worker(answers: Answers) -> bool:
    ready = answers.get(READY)  # 503 while it loads, with the same body
    return ready is not None and {"is_ready", "phase"} <= fields(ready.document).keys()


def _read_worker(answers: Answers) -> HelperSeen:
    ready, status = answers.get(READY), said(answers, STATUS)
    said_ready = fields(ready.document) if ready is not None else {}
    model = text(said_ready.get("model"))
    served = frozenset({model} if model else ())
    memory, context = count(fields(status.get("memory")).get("active_bytes")), count(status.get("context_length"))
    return HelperSeen(
        engine="orchestrate worker",
        version=text(fields(status.get("versions")).get("orchestrate")),
        present=served,
        loaded=served if said_ready.get("is_ready") is True else frozenset(),
        loaded_bytes={model: memory} if model and memory else {},
        context={model: context} if model and context else {},
    )


def _is_gateway(answers: Answers) -> bool:
    return OWNER in owners(answers) and not _is_worker(answers)


def _read_gateway(answers: Answers) -> HelperSeen:
    return HelperSeen(engine="orchestrate gateway", present=names(openai_models(answers)))


WORKER = Dialect("orchestrate worker", (READY,), (STATUS, OPENAI_MODELS), _is_worker, _read_worker)
GATEWAY = Dialect("orchestrate gateway", (OPENAI_MODELS, READY), (), _is_gateway, _read_gateway)
