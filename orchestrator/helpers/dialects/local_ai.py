"""Pure: LocalAI. Shapes: localai.io/docs/reference/system-info (`GET /system`: `backends`, `loaded_models`;
`GET /version`); its OpenAI list has no owners.
"""

from __future__ import annotations

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, numbers, openai_models, said
from orchestrator.observed import HelperSeen
from schemas.foreign import rows, text

SYSTEM, VERSION = "/system", "/version"


def _is_spoken(answers: Answers) -> bool:
    return {"backends", "loaded_models"} <= said(answers, SYSTEM).keys()


def _read(answers: Answers) -> HelperSeen:
    loaded = rows(said(answers, SYSTEM).get("loaded_models"))
    version = text(said(answers, VERSION).get("version")) or ""
    return HelperSeen(
        engine="localai",
        version=version.split(" ")[0].removeprefix("v") or None,
        present=names(openai_models(answers)),
        loaded=names(loaded),
        loaded_bytes=numbers(loaded, "id", "size_vram"),
    )


LOCAL_AI = Dialect("localai", (SYSTEM,), (OPENAI_MODELS, VERSION), _is_spoken, _read)
