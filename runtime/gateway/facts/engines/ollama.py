"""Pure: Ollama, by its own API. Shapes: ollama/ollama `api/types.go` (ListModelResponse, ProcessModelResponse,
ShowResponse), `docs/api.md`, `types/model/capability.go`; names: `types/model/name.go`.

It cuts prompts down to the context that a model was loaded with, which is seldom the one that it was made for: that
one is told at `/api/ps` while the model is in memory, or by `num_ctx` in its own parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import cast

from runtime.gateway.facts.answers import Answers, Question, Reader, said, size_in_words
from runtime.gateway.facts.known import Capability, Facts
from schemas.foreign import count, fields, rows, text, texts
from schemas.ollama_names import full_name

TAGS, PS, SHOW = Question("/api/tags"), Question("/api/ps"), "/api/show"
_ITS_WORDS: frozenset[Capability] = frozenset(
    {"completion", "tools", "insert", "vision", "audio", "embedding", "thinking"}
)
"""It says all of these that a model can do, and refuses the others by name."""
_STAYS_FROM = 2200
"""A model with `keep_alive: -1` expires in a year beyond this."""


def _more(answers: Answers, models: frozenset[str]) -> tuple[Question, ...]:
    listed = _by_name(answers, TAGS)
    return tuple(show(model) for model in sorted(models) if full_name(model) in listed)


def show(model: str) -> Question:
    """Return the question that tells most of one model; it loads nothing."""
    return Question(SHOW, json.dumps({"model": model}))


def _stamp(answers: Answers, question: Question) -> str | None:
    """Return the digest of the model that a question is about: what is shown of it changes with that alone."""
    if question.path != SHOW:
        return None
    model = text(fields(json.loads(question.body)).get("model"))
    return text(_row(answers, TAGS, model).get("digest")) if model else None


def _read(answers: Answers, model: str) -> Facts | None:
    listed, running = _row(answers, TAGS, model), _row(answers, PS, model)
    shown = said(answers, show(model))
    if not listed and not shown:
        return None
    info, details = fields(shown.get("model_info")), fields(shown.get("details")) or fields(listed.get("details"))
    architecture = text(info.get("general.architecture")) or text(details.get("family"))
    stated = cast(frozenset[Capability], texts(shown.get("capabilities")) & _ITS_WORDS)
    parameters = count(info.get("general.parameter_count"))
    is_loaded = bool(running) if rows_are_there(answers, PS) else None
    wanted = _parameter(shown.get("parameters"), "num_ctx")
    return Facts(
        source="ollama",
        context_length=count(running.get("context_length")) or wanted,
        trained_context_length=count(info.get(f"{architecture}.context_length")),
        can=stated | ({"json_schema"} if "completion" in stated else frozenset()),
        cannot=_ITS_WORDS - stated if stated else frozenset(),
        dimensions=count(info.get(f"{architecture}.embedding_length")),
        architecture=architecture,
        parameter_count=parameters,
        parameter_size=text(details.get("parameter_size")) or size_in_words(parameters),
        quantisation=text(details.get("quantization_level")),
        format=text(details.get("format")),
        size_bytes=count(listed.get("size")),
        digest=text(listed.get("digest")),
        modified_at=text(listed.get("modified_at")) or text(shown.get("modified_at")),
        is_loaded=is_loaded,
        expires_at=_moment(running.get("expires_at")),
        size_loaded=count(running.get("size")),
        size_vram=_vram(running),
    )


def rows_are_there(answers: Answers, question: Question) -> bool:
    """Tell whether a list was answered, be it empty: Go writes an empty one as null at times."""
    return "models" in said(answers, question)


def _row(answers: Answers, question: Question, model: str) -> Mapping[str, object]:
    return _by_name(answers, question).get(full_name(model), {})


def _by_name(answers: Answers, question: Question) -> Mapping[str, Mapping[str, object]]:
    """Return the rows of a list by their full names; they are read once, however many models are looked for."""
    answer = answers.get(question)
    if answer is None:
        return {}
    found = answer.indexes.get("ollama")
    if found is None:
        listed = rows(said(answers, question).get("models"))
        # The first of two rows with one name counts.
        named = {full_name(name): row for row in reversed(listed) if (name := text(row.get("name")))}
        found = answer.indexes["ollama"] = named
    return found


def _parameter(value: object, name: str) -> int | None:
    """Return a number of a Modelfile's parameters, which are lines of a name and a value."""
    lines = value.splitlines() if isinstance(value, str) else []
    pairs = [line.split(None, 1) for line in lines]
    found = next((pair[1].strip() for pair in pairs if len(pair) == 2 and pair[0] == name), "")
    return count(int(found)) if found.isascii() and found.isdigit() and len(found) < 12 else None


def _vram(running: Mapping[str, object]) -> int | None:
    # Zero is an answer here: the model is computed by the processor.
    return 0 if running.get("size_vram") == 0 and running else count(running.get("size_vram"))


def _moment(value: object) -> float | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None or moment.tzinfo is None or not 1970 < moment.year < _STAYS_FROM:
        return None
    return moment.timestamp()


OLLAMA = Reader((TAGS, PS), _more, _read, _stamp)
