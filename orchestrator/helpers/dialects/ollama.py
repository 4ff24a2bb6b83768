"""Pure: Ollama, by its own API. Shapes: ollama/ollama `docs/api.md` (list local models, list running models, version)
and `api/types.go` (ListResponse, ProcessResponse); names: `types/model/name.go`.
"""

from __future__ import annotations

from orchestrator.helpers.answers import Answers, Dialect, names, numbers, said
from orchestrator.observed import HelperSeen
from schemas.foreign import rows, text

VERSION, TAGS, PS = "/api/version", "/api/tags", "/api/ps"


def _is_spoken(answers: Answers) -> bool:
    return text(said(answers, VERSION).get("version")) is not None and "models" in said(answers, TAGS)


def _read(answers: Answers) -> HelperSeen:
    running = rows(said(answers, PS).get("models"))
    return HelperSeen(
        engine="ollama",
        version=text(said(answers, VERSION).get("version")),
        present=names(rows(said(answers, TAGS).get("models")), "name"),
        loaded=names(running, "name"),
        loaded_bytes=numbers(running, "name", "size"),
        context=numbers(running, "name", "context_length"),
    )


OLLAMA = Dialect("ollama", (VERSION, TAGS), (PS,), _is_spoken, _read)
