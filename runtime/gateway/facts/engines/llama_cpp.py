"""Pure: llama.cpp's `llama-server`, alone and as a router of several models.

Shapes: ggml-org/llama.cpp `tools/server/README.md` (`GET /props`, `GET /v1/models`: rows with `meta`, in router mode
with `status.value` and `aliases`) and `common/jinja/caps.h` (`chat_template_caps`). Neither page wakes a sleeping
model ("Sleeping on idle"); the router is told not to load by `autoload=false`. It answers any name where it has one
model. While that is loaded, `/v1/models` says its name with `meta: null`, and all other pages say 503 "Loading model"
(`tools/server/server-http.cpp`, `middleware_server_state`). Every chat model takes `response_format` with a schema and
`logprobs` there (README, chat completions).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from runtime.gateway.facts.answers import Answers, Question, Reader, is_loading, said, says_loading, size_in_words
from runtime.gateway.facts.known import Capability, Facts
from schemas.foreign import count, fields, flag, rows, text, texts

MODELS, PROPS = Question("/v1/models"), Question("/props")
_AWAKE = frozenset({"loaded", "sleeping"})
"""States of a router's model that has a process; one that sleeps has given its memory back."""


def _more(answers: Answers, models: frozenset[str]) -> tuple[Question, ...]:
    listed = rows(said(answers, MODELS).get("data"))
    if not _is_router(listed):
        return () if PROPS in answers else (PROPS,)
    return tuple(_props_of(name) for name in sorted(models) if _state(_row(listed, name)) in _AWAKE)


def _read(answers: Answers, model: str) -> Facts | None:
    document = said(answers, MODELS)
    listed = rows(document.get("data"))
    is_router = _is_router(listed)
    row = _row(listed, model) or (listed[0] if len(listed) == 1 and not is_router else {})
    question = _props_of(model) if is_router else PROPS
    props = said(answers, question)
    is_under_way = is_loading(answers[question]) if is_router and question in answers else _is_changing(answers)
    if not row and (is_router or "default_generation_settings" not in props):
        return None
    told = next((one for one in rows(document.get("models")) if one.get("name") in (model, row.get("id"))), {})
    meta = fields(row.get("meta"))
    parameters = count(meta.get("n_params"))
    state = _state(row)
    is_asleep = flag(props.get("is_sleeping")) or state == "sleeping" or is_under_way
    can, cannot = _abilities(props, texts(told.get("capabilities")))
    return Facts(
        source="llama.cpp",
        context_length=count(fields(props.get("default_generation_settings")).get("n_ctx")) or count(meta.get("n_ctx")),
        trained_context_length=count(meta.get("n_ctx_train")),
        can=can,
        cannot=cannot,
        dimensions=count(meta.get("n_embd")),
        parameter_count=parameters,
        parameter_size=size_in_words(parameters),
        quantisation=text(meta.get("ftype")),
        format="gguf",
        size_bytes=count(meta.get("size")),
        is_loaded=not is_asleep and state in (None, "loaded"),
    )


def _is_changing(answers: Answers) -> bool:
    """Tell whether it was loading its model at any of the questions: what one of them was told is over."""
    listed = rows(said(answers, MODELS).get("data"))
    is_unread = any("meta" in row and row.get("meta") is None for row in listed) and not _is_router(listed)
    return is_unread or says_loading(answers)


def _abilities(
    props: Mapping[str, object], told: frozenset[str]
) -> tuple[frozenset[Capability], frozenset[Capability]]:
    stated: dict[Capability, bool | None] = {}
    modalities, template = fields(props.get("modalities")), fields(props.get("chat_template_caps"))
    stated["vision"], stated["audio"] = flag(modalities.get("vision")), flag(modalities.get("audio"))
    # A template that shows no tools drops them in silence, also where one has to be called.
    stated["tools"] = flag(template.get("supports_tools"))
    if told:
        stated["completion"] = "completion" in told
        stated["embedding"] = "embedding" in told or None
    if stated.get("completion") or props.get("chat_template"):
        stated["json_schema"] = stated["logprobs"] = True
    return (
        frozenset(name for name, is_able in stated.items() if is_able),
        frozenset(name for name, is_able in stated.items() if is_able is False),
    )


def _is_router(listed: list[Mapping[str, object]]) -> bool:
    return any("status" in row for row in listed)


def _row(listed: list[Mapping[str, object]], name: str) -> Mapping[str, object]:
    return next((row for row in listed if row.get("id") == name or name in texts(row.get("aliases"))), {})


def _state(row: Mapping[str, object]) -> str | None:
    return text(fields(row.get("status")).get("value"))


def _props_of(model: str) -> Question:
    return Question(f"/props?model={quote(model, safe='')}&autoload=false")


LLAMA_CPP = Reader((MODELS, PROPS), _more, _read, is_changing=_is_changing)
