"""Pure: Ollama, by its own API. Shapes: ollama/ollama `docs/api.md` (list local models, list running models, version)
and `api/types.go` (ListResponse, ProcessResponse); names: `types/model/name.go`.
"""

from __future__ import annotations

from orchestrator.helpers.answers import Answers, Dialect, names, numbers, rows, said, text
from orchestrator.observed import HelperSeen

VERSION, TAGS, PS = "/api/version", "/api/tags", "/api/ps"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"


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


def full_name(name: str) -> str:
    """Return a model's name with the parts that Ollama adds: `m` is `registry.ollama.ai/library/m:latest`.

    Ollama compares names without regard to case (`Name.EqualFold`).
    """
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a host's port
        path, tag = name, _TAG
    parts = path.split("/")
    defaults = [_HOST, _NAMESPACE][: max(0, 3 - len(parts))]
    return "/".join([*defaults, *parts]).lower() + f":{tag.lower()}"


def short_name(name: str) -> str:
    """Return a model's name as people write it: without the tag `latest`."""
    return name.removesuffix(f":{_TAG}")


OLLAMA = Dialect("ollama", (VERSION, TAGS), (PS,), _is_spoken, _read)
