"""Pure: which program answers at a helper's URL: what to ask it, and what its answers say. No file is believed."""

from __future__ import annotations

from typing import Literal

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect
from orchestrator.helpers.dialects.infinity import INFINITY
from orchestrator.helpers.dialects.llama_cpp import LLAMA_CPP
from orchestrator.helpers.dialects.lm_studio import LM_STUDIO
from orchestrator.helpers.dialects.local_ai import LOCAL_AI
from orchestrator.helpers.dialects.mlx_lm import MLX_LM
from orchestrator.helpers.dialects.ollama import OLLAMA
from orchestrator.helpers.dialects.openai import OPENAI
from orchestrator.helpers.dialects.own import GATEWAY, WORKER
from orchestrator.helpers.dialects.tei import TEI
from orchestrator.helpers.dialects.vllm import VLLM
from orchestrator.observed import HelperSilent
from schemas.foreign import fields, message

Api = Literal["openai", "ollama", "tei", "infinity", "mlx-lm-server", "worker"]

DIALECTS = (WORKER, LM_STUDIO, LLAMA_CPP, VLLM, TEI, INFINITY, LOCAL_AI, OLLAMA, MLX_LM, GATEWAY, OPENAI)
"""The one that is surest of itself first: LocalAI also speaks Ollama's, most speak OpenAI's."""
_UNSURE = (OPENAI, GATEWAY)
"""What everything else would be taken for as well, before all was asked."""
_FIRST: dict[Api, tuple[str, ...]] = {
    "openai": (OPENAI_MODELS,),
    "ollama": OLLAMA.clues,
    "tei": TEI.clues,
    "infinity": INFINITY.clues,
    "mlx-lm-server": MLX_LM.clues,
    "worker": WORKER.clues,
}


def first_questions(api: Api) -> tuple[str, ...]:
    """Return the paths that a server of the declared kind is recognised by."""
    return _FIRST[api]


def all_questions() -> tuple[str, ...]:
    """Return every path that some server is recognised by."""
    return tuple(dict.fromkeys(path for dialect in DIALECTS for path in dialect.clues))


def recognised(answers: Answers, *, was_all_asked: bool) -> Dialect | None:
    """Return the server that these answers come from.

    Before everything was asked, a mere OpenAI-compatible list is no answer yet.
    """
    spoken = (dialect for dialect in DIALECTS if dialect.is_spoken(answers))
    return next((dialect for dialect in spoken if was_all_asked or dialect not in _UNSURE), None)


def loading(url: str, answers: Answers) -> HelperSilent | None:
    """Say that a server loads its model, where one of its answers says so; what it has is not told before."""
    for answer in answers.values():
        error = fields(fields(answer.document).get("error"))
        if answer.status == 503 and "loading" in (message(error.get("message")) or "").lower():
            return HelperSilent(f"{url} is loading its model", "loading")
    return None


def unrecognised(url: str, answers: Answers) -> HelperSilent:
    """Say what is known of something that answers HTTP and is no inference server that we know."""
    statuses = {path: answer.status for path, answer in answers.items()}
    if locked := [path for path, status in statuses.items() if status in (401, 403)]:
        return HelperSilent(f"{url}{locked[0]} answers {statuses[locked[0]]}: it asks for another key", "key")
    if (silent := loading(url, answers)) is not None:
        return silent
    shown = ", ".join(f"{path} {status}" for path, status in sorted(statuses.items())[:3])
    return HelperSilent(f"{url} answers, but not as an inference server does ({shown})", "stranger")
