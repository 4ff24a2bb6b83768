"""Pure: LM Studio. Shapes: its REST API v1 (`GET /api/v1/models`: `models` with `key`, `capabilities` and
`loaded_instances`) and v0 (`GET /api/v0/models`: `data` with `state`, `type`, `arch`), lmstudio.ai/docs.

Its pages load nothing. A model that is not loaded has no context of its own yet: only the most that it could have.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, row_of, said
from runtime.gateway.facts.known import Capability, Facts
from schemas.foreign import count, fields, flag, rows, text, texts

V0, V1 = Question("/api/v0/models"), Question("/api/v1/models")


def _read(answers: Answers, model: str) -> Facts | None:
    for row in rows(said(answers, V1).get("models")):
        instances = rows(row.get("loaded_instances"))
        if row.get("key") == model or any(instance.get("id") == model for instance in instances):
            return _read_v1(row, instances, model)
    row = row_of(rows(said(answers, V0).get("data")), model, "id")
    return _read_v0(row) if row else None


def _read_v1(row: Mapping[str, object], instances: list[Mapping[str, object]], model: str) -> Facts:
    abilities = fields(row.get("capabilities"))
    kind = text(row.get("type"))
    stated: dict[Capability, bool | None] = {
        "completion": kind in {"llm", "vlm"},
        "json_schema": kind in {"llm", "vlm"},
        "embedding": kind == "embedding",
        "vision": flag(abilities.get("vision")),
        "tools": flag(abilities.get("trained_for_tool_use")) or None,
        "thinking": bool(abilities.get("reasoning")) or None,
    }
    named = [instance for instance in instances if instance.get("id") == model] or instances
    contexts = [count(fields(instance.get("config")).get("context_length")) for instance in named]
    return Facts(
        source="lm studio",
        context_length=min((context for context in contexts if context), default=None),
        trained_context_length=count(row.get("max_context_length")),
        can=_those(stated, wanted=True),
        cannot=_those(stated, wanted=False),
        architecture=text(row.get("architecture")),
        parameter_size=text(row.get("params_string")),
        quantisation=text(fields(row.get("quantization")).get("name")) or text(row.get("quantization")),
        format=text(row.get("format")),
        size_bytes=count(row.get("size_bytes")),
        is_loaded=bool(instances) if isinstance(row.get("loaded_instances"), list) else None,
    )


def _read_v0(row: Mapping[str, object]) -> Facts:
    kind, state = text(row.get("type")), text(row.get("state"))
    stated: dict[Capability, bool | None] = {
        "completion": kind in {"llm", "vlm"} if kind else None,
        "json_schema": kind in {"llm", "vlm"} if kind else None,
        "embedding": kind == "embeddings" if kind else None,
        "vision": kind == "vlm" if kind else None,
        "tools": "tool_use" in texts(row.get("capabilities")) or None,
    }
    return Facts(
        source="lm studio",
        context_length=count(row.get("loaded_context_length")),
        trained_context_length=count(row.get("max_context_length")),
        can=_those(stated, wanted=True),
        cannot=_those(stated, wanted=False),
        architecture=text(row.get("arch")),
        quantisation=text(row.get("quantization")),
        format=text(row.get("compatibility_type")),
        is_loaded=None if state is None else state == "loaded",
    )


def _those(stated: Mapping[Capability, bool | None], *, wanted: bool) -> frozenset[Capability]:
    return frozenset(name for name, is_able in stated.items() if is_able is wanted)


LM_STUDIO = Reader((V1, V0), nothing_more, _read)
