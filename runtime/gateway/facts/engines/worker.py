"""Pure: our own worker. Its `/v1/models` says everything that a client can be told: `schemas.messages.WorkerModel`.

An older worker says its context length alone, under vLLM's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from runtime.gateway.facts.answers import Answers, Question, Reader, nothing_more, row_of, said, size_in_words
from runtime.gateway.facts.known import CAPABILITIES, Capability, Facts
from schemas.foreign import count, flag, rows, text, texts

MODELS = Question("/v1/models")


def _read(answers: Answers, model: str) -> Facts | None:
    row = row_of(rows(said(answers, MODELS).get("data")), model, "id")
    return read_row(row) if row else None


def read_row(row: Mapping[str, object]) -> Facts:
    """Return what a row of a worker's or a gateway's models list says."""
    can, lacks = (_words(row.get(key)) for key in ("capabilities", "lacks"))
    parameters = count(row.get("parameters"))
    return Facts(
        source="gateway" if "kind" in row else "worker",
        context_length=count(row.get("context_length")) or count(row.get("max_model_len")),
        trained_context_length=count(row.get("trained_context_length")),
        max_output=count(row.get("max_output")),
        can=can,
        cannot=lacks - can,
        dimensions=count(row.get("dimensions")),
        architecture=text(row.get("architecture")),
        parameter_count=parameters,
        parameter_size=size_in_words(parameters),
        quantisation=text(row.get("quantisation")),
        format=text(row.get("format")),
        size_bytes=count(row.get("size_bytes")),
        is_loaded=flag(row.get("loaded")),
        size_loaded=count(row.get("memory_bytes")),
        expires_at=_moment(row.get("expires_at")),
    )


def _words(value: object) -> frozenset[Capability]:
    return cast(frozenset[Capability], texts(value) & frozenset(CAPABILITIES))


def _moment(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(cast(float, value)) if is_number and 0 < cast(float, value) < 1e11 else None


WORKER = Reader((MODELS,), nothing_more, _read)
