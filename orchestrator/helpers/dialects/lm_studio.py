"""Pure: LM Studio. Shapes: its REST API v1 (`GET /api/v1/models`: `models` with `key` and `loaded_instances`) and v0
(`GET /api/v0/models`: `data` with `state`), lmstudio.ai/docs; its OpenAI list says `owned_by: organization_owner`.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, numbers, openai_models, owners, said
from orchestrator.observed import HelperSeen
from schemas.foreign import fields, rows

V0, V1 = "/api/v0/models", "/api/v1/models"


def _is_spoken(answers: Answers) -> bool:
    return "organization_owner" in owners(answers) or any("state" in row for row in openai_models(answers, V0))


def _read(answers: Answers) -> HelperSeen:
    if newer := rows(said(answers, V1).get("models")):
        return _read_v1(newer)
    listed = openai_models(answers, V0)
    loaded = [row for row in listed if row.get("state") == "loaded"]
    return HelperSeen(
        engine="lm studio",
        present=names(listed) or names(openai_models(answers)),
        loaded=names(loaded),
        context=numbers(listed, "id", "max_context_length")
        | numbers(loaded, "id", "loaded_context_length", "max_context_length"),
    )


def _read_v1(listed: list[Mapping[str, object]]) -> HelperSeen:
    instances = [instance for row in listed for instance in rows(row.get("loaded_instances"))]
    running = [row for row in listed if rows(row.get("loaded_instances"))]
    loaded_context = [{"id": instance.get("id"), **fields(instance.get("config"))} for instance in instances]
    return HelperSeen(
        engine="lm studio",
        present=names(listed, "key") | names(instances),
        loaded=names(running, "key") | names(instances),
        loaded_bytes=numbers(running, "key", "size_bytes"),
        context=numbers(listed, "key", "max_context_length") | numbers(loaded_context, "id", "context_length"),
    )


LM_STUDIO = Dialect("lm studio", (OPENAI_MODELS, V0), (V0, V1), _is_spoken, _read)
