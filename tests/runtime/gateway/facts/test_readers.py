"""What the documents of each server say of a model, and what nonsense says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.facts.answers import Answer, Question, size_in_words
from runtime.gateway.facts.inquiry import MOST_ROUNDS, facts_of, is_changing, next_questions, stamp_of
from runtime.gateway.facts.known import CAPABILITIES, UNKNOWN, Facts
from schemas.ollama_names import full_name
from tests.fakes import engines

SHOWN = {
    "license": "...",
    "modelfile": "FROM ...",
    "parameters": 'num_ctx                        8192\nstop                           "<|eot_id|>"',
    "template": "{{ .Prompt }}",
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    },
    "model_info": {
        "general.architecture": "llama",
        "general.parameter_count": 8030261248,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "tokenizer.ggml.tokens": None,
    },
    "capabilities": ["completion", "tools"],
    "modified_at": "2026-11-01T08:00:00.000000001-07:00",
}
"""ollama `docs/api.md`, "Show Model Information"."""

PROPS = {
    "default_generation_settings": {"id": 0, "n_ctx": 4096},
    "total_slots": 2,
    "model_path": "/models/m.gguf",
    "chat_template": "...",
    "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True, "supports_system_role": True},
    "modalities": {"vision": False, "audio": False},
    "build_info": "b6700-1deee0f8",
    "is_sleeping": False,
}
"""llama.cpp `tools/server/README.md`, "GET /props"."""

META = {"n_ctx_train": 8192, "n_embd": 576, "n_params": 134515008, "size": 95000, "ftype": "Q4_1"}
V1 = {
    "models": [
        {
            "type": "llm",
            "key": "google/gemma-4-e4b",
            "architecture": "gemma4",
            "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
            "size_bytes": 1000,
            "params_string": "4B",
            "loaded_instances": [{"id": "google/gemma-4-e4b", "config": {"context_length": 8192, "parallel": 4}}],
            "max_context_length": 131072,
            "format": "gguf",
            "capabilities": {"vision": True, "trained_for_tool_use": True, "reasoning": {"default": "on"}},
        },
        {"type": "embedding", "key": "nomic", "size_bytes": 500, "loaded_instances": [], "max_context_length": 2048},
    ]
}
"""LM Studio's REST API v1, lmstudio.ai/docs, "List your models"."""


def row(model: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": model, "object": "model", **more}]}


def ask(engine: str, documents: Mapping[str, Any], *models: str) -> dict[Question, Answer]:
    """Return the answers of a server with these documents, as a gateway asks for them."""
    answers: dict[Question, Answer] = {}
    for _ in range(MOST_ROUNDS):
        for question in next_questions(engine, answers, frozenset(models)):
            document = documents.get(question.path)
            if question.body and document is not None:
                document = document.get(json.loads(question.body)["model"])
            answers[question] = Answer(404 if document is None else 200, document)
    return answers


def read(engine: str, documents: Mapping[str, Any], model: str, before: Facts = UNKNOWN) -> Facts:
    return facts_of(engine, ask(engine, documents, model), model, before, 7.0)


OLLAMA = engines.ollama("llama3:latest", "other:1b", loaded=("llama3:latest",)) | {"/api/show": {"llama3": SHOWN}}
COLD_OLLAMA = engines.ollama("llama3:latest") | {"/api/show": {"llama3": SHOWN | {"parameters": ""}}}
LLAMA_CPP = {"/v1/models": row("m", owned_by="llamacpp", meta=META), "/props": PROPS}
WORKER = row(
    "m", owned_by="orchestrate", context_length=2048, max_model_len=2048, capabilities=["completion", "tools", "magic"],
    lacks=["vision"], parameters=134515008, quantisation="4bit", format="mlx", loaded=False, expires_at=1.5e9,
)  # fmt: skip

SAID: dict[str, tuple[str, Mapping[str, Any], str, dict[str, Any]]] = {
    "our worker": ("mlx", {"/v1/models": WORKER}, "m", {
        "source": "worker", "context_length": 2048, "can": {"completion", "tools"}, "cannot": {"vision"},
        "parameter_size": "134.5M", "quantisation": "4bit", "is_loaded": False, "expires_at": 1.5e9}),
    "an older worker": ("mlx", {"/v1/models": row("m", owned_by="orchestrate", max_model_len=99)}, "m", {
        "source": "worker", "context_length": 99, "can": set(), "cannot": set(), "is_loaded": None}),
    "another gateway": ("openai", {"/v1/models": row("m", owned_by="orchestrate", kind="role", context_length=5)}, "m",
        {"source": "gateway", "context_length": 5}),
    "vllm": ("vllm", engines.vllm("m"), "m", {
        "source": "vllm", "context_length": 32768, "can": set(), "cannot": set(), "is_loaded": True}),
    "vllm, declared as openai": ("openai", engines.vllm("m"), "m", {"source": "vllm", "context_length": 32768}),
    "llama.cpp": ("llama-server", LLAMA_CPP, "m", {
        "source": "llama.cpp", "context_length": 4096, "trained_context_length": 8192, "dimensions": 576,
        "can": {"tools", "json_schema", "logprobs"}, "cannot": {"vision", "audio"}, "parameter_count": 134515008,
        "size_bytes": 95000, "quantisation": "Q4_1", "format": "gguf", "is_loaded": True}),
    "llama.cpp answers any name": ("openai", LLAMA_CPP, "whatever", {"source": "llama.cpp", "context_length": 4096}),
    "llama.cpp asleep": ("openai", LLAMA_CPP | {"/props": PROPS | {"is_sleeping": True}}, "m", {"is_loaded": False}),
    "llama.cpp with images": ("openai", LLAMA_CPP | {"/props": PROPS | {"modalities": {"vision": True}}}, "m",
        {"can": {"tools", "json_schema", "logprobs", "vision"}, "cannot": set()}),
    "a router's model that is loaded": ("openai", engines.llama_cpp_router(m="loaded", n="unloaded")
        | {"/props?model=m&autoload=false": PROPS}, "m", {"context_length": 4096, "is_loaded": True}),
    "a router's model that is not": ("openai", engines.llama_cpp_router(m="loaded", n="unloaded"), "n",
        {"source": "llama.cpp", "context_length": None, "is_loaded": False}),
    "a router's alias": ("openai", engines.llama_cpp_router(m="loaded"), "m-alias", {"is_loaded": True}),
    "ollama, loaded": ("ollama", OLLAMA, "llama3", {
        "source": "ollama", "context_length": 4096, "trained_context_length": 131072, "architecture": "llama",
        "can": {"completion", "tools", "json_schema"}, "parameter_size": "8.0B", "quantisation": "Q4_K_M",
        "cannot": {"vision", "embedding", "thinking", "insert", "audio"}, "is_loaded": True, "size_vram": 900,
        "size_loaded": 1000, "expires_at": 1795312800.0, "digest": "d" * 64}),
    "ollama, not loaded": ("ollama", COLD_OLLAMA, "llama3", {
        "context_length": None, "trained_context_length": 131072, "is_loaded": False, "expires_at": None,
        "size_loaded": None}),
    "ollama with a context of its own": ("ollama", COLD_OLLAMA | {"/api/show": {"llama3": SHOWN}}, "llama3",
        {"context_length": 8192}),
    "ollama, declared as openai": ("openai", OLLAMA, "llama3", {"source": "ollama", "context_length": 4096}),
    "ollama without the model": ("ollama", OLLAMA, "nobody", {"source": "", "is_loaded": None}),
    "ollama, before capabilities were told": ("ollama",
        OLLAMA | {"/api/show": {"llama3": {key: SHOWN[key] for key in ("details", "model_info")}}}, "llama3",
        {"can": set(), "cannot": set(), "trained_context_length": 131072}),
    "lm studio, version 1": ("openai", {"/v1/models": row("google/gemma-4-e4b", owned_by="organization_owner"),
        "/api/v1/models": V1}, "google/gemma-4-e4b", {
        "source": "lm studio", "context_length": 8192, "trained_context_length": 131072, "parameter_size": "4B",
        "can": {"completion", "json_schema", "vision", "tools", "thinking"}, "cannot": {"embedding"},
        "quantisation": "Q4_K_M", "format": "gguf", "is_loaded": True}),
    "lm studio, an embedder that is not loaded": ("openai", {"/v1/models": row("nomic", owned_by="organization_owner"),
        "/api/v1/models": V1}, "nomic", {"can": {"embedding"}, "context_length": None, "is_loaded": False}),
    "lm studio, version 0": ("openai", engines.lm_studio(m="loaded", n="not-loaded"), "m", {
        "context_length": 8192, "trained_context_length": 131072, "is_loaded": True, "architecture": "llama",
        "can": {"completion", "json_schema"}, "cannot": {"embedding", "vision"}}),
    "lm studio, version 0, not loaded": ("openai", engines.lm_studio(m="loaded", n="not-loaded"), "n",
        {"context_length": None, "is_loaded": False}),
    "tei": ("tei", engines.tei("m"), "m", {
        "source": "tei", "context_length": 512, "can": {"embedding"}, "cannot": {"rerank", "completion"},
        "is_loaded": True}),
    "infinity": ("infinity", engines.infinity("m"), "m", {
        "source": "infinity", "can": {"embedding"}, "cannot": {"rerank", "vision", "completion"}, "is_loaded": True}),
    "stock mlx_lm.server": ("mlx-lm-server", engines.mlx_lm("m"), "default_model", {
        "source": "mlx_lm.server", "context_length": None, "is_loaded": None,
        "cannot": {"json_schema", "vision", "audio", "embedding", "rerank"}}),
    "somebody else": ("openai", {"/v1/models": row("m", max_model_len=77)}, "m", {
        "source": "openai", "context_length": 77, "is_loaded": None, "can": set()}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_a_server_is_taken_at_its_word(case: str) -> None:
    engine, documents, model, expected = SAID[case]
    found = read(engine, documents, model)
    assert found.observed_at == 7.0
    assert {key: getattr(found, key) for key in expected} == expected


ENGINES = ("mlx", "vllm", "llama-server", "ollama", "tei", "infinity", "mlx-lm-server", "openai", "command")
WORDS = (
    "data models id name key owned_by status value meta n_ctx state model_info general.architecture capabilities "
    "details parameters digest expires_at loaded_instances config context_length max_model_len modalities"
)
KEYS = st.sampled_from(WORDS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.sampled_from(ENGINES), st.data())
def test_nonsense_says_nothing_and_breaks_nothing(engine: str, data: st.DataObject) -> None:
    class Pages(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return data.draw(st.none() | st.dictionaries(KEYS, JSON, max_size=4))

    answers = ask(engine, Pages(), "m")
    found = facts_of(engine, answers, "m", UNKNOWN, 7.0)
    assert found.can <= set(CAPABILITIES) and not found.can & found.cannot
    for number in (found.context_length, found.size_bytes, found.parameter_count, found.dimensions):
        assert number is None or number > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("document", [None, [], "text", {"data": "x"}, {"data": [[]], "models": 3}])
def test_a_page_of_another_shape_leaves_everything_unknown(engine: str, document: Any) -> None:
    paths = ("/v1/models", "/models", "/props", "/api/tags", "/api/ps", "/info", "/health")
    found = read(engine, dict.fromkeys(paths, document), "m")
    assert (found.source, found.context_length, found.is_loaded, found.can) == ("", None, None, frozenset())


def test_a_server_that_is_silent_keeps_what_it_is_but_not_what_it_holds() -> None:
    before = read("ollama", OLLAMA, "llama3")
    gone = facts_of("ollama", {}, "llama3", before, 9.0)
    assert (gone.context_length, gone.observed_at, gone.can) == (4096, 7.0, before.can)
    assert (gone.is_loaded, gone.expires_at, gone.size_vram, gone.size_loaded) == (None, None, None, None)
    refused = {Question("/api/tags"): Answer(401, {"error": "key"})}
    assert facts_of("ollama", refused, "llama3", before, 9.0) == gone


LOADING = Answer(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
UNREAD = Answer(200, row("m", owned_by="llamacpp", meta=None))
"""What llama.cpp's `/v1/models` says before its model is loaded."""
MODELS, PROPS_PAGE = Question("/v1/models"), Question("/props")


@pytest.mark.parametrize("engine", ["llama-server", "openai"])
@pytest.mark.parametrize(
    "props", [LOADING, Answer(200, PROPS)], ids=["it loads", "it has loaded between the two questions"]
)
def test_a_llama_cpp_that_loads_has_not_loaded_and_keeps_what_it_was_known_to_be(engine: str, props: Answer) -> None:
    answers = {MODELS: UNREAD, PROPS_PAGE: props}
    assert is_changing(engine, answers), "it is asked again soon"
    new = facts_of(engine, answers, "m", UNKNOWN, 7.0)
    assert (new.source, new.is_loaded, new.parameter_count) == ("llama.cpp", False, None)
    before = read(engine, LLAMA_CPP, "m")
    again = facts_of(engine, answers, "m", before, 9.0)
    assert again == replace(before, is_loaded=False, observed_at=9.0)
    assert not is_changing(engine, ask(engine, LLAMA_CPP, "m"))


@pytest.mark.parametrize("broken", [None, Answer(500, {"error": "busy"})], ids=["no answer", "an error"])
@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/show"])
@pytest.mark.parametrize("engine", ["ollama", "openai"])
def test_a_page_that_says_nothing_for_once_takes_nothing_back(engine: str, path: str, broken: Answer | None) -> None:
    before = read(engine, OLLAMA, "llama3")
    answers = {
        question: answer if question.path != path else broken
        for question, answer in ask(engine, OLLAMA, "llama3").items()
        # What a list names is not asked where there is no list.
        if question.path != "/api/show" or path != "/api/tags"
    }
    found = facts_of(engine, {one: said for one, said in answers.items() if said is not None}, "llama3", before, 9.0)
    lasting = {"is_loaded": None, "expires_at": None, "size_loaded": None, "size_vram": None, "observed_at": None}
    assert replace(found, **lasting) == replace(before, **lasting)
    assert found.is_loaded is (True if path == "/api/show" else None)


def test_a_page_that_says_nothing_says_nothing_of_another_model() -> None:
    before = read("ollama", OLLAMA, "llama3")
    pulled_anew = json.loads(json.dumps(OLLAMA).replace("d" * 64, "e" * 64))
    answers = {question: said for question, said in ask("ollama", pulled_anew, "llama3").items() if not question.body}
    found = facts_of("ollama", answers, "llama3", before, 9.0)
    assert (found.digest, found.trained_context_length, found.can) == ("e" * 64, None, frozenset())


def test_a_model_that_was_dropped_keeps_the_context_that_it_had_until_it_is_another_one() -> None:
    warm = read("ollama", OLLAMA | {"/api/show": {"llama3": SHOWN | {"parameters": ""}}}, "llama3")
    cold = read("ollama", COLD_OLLAMA, "llama3", warm)
    assert (cold.is_loaded, cold.context_length) == (False, 4096)
    pulled_anew = json.loads(json.dumps(COLD_OLLAMA).replace("d" * 64, "e" * 64))
    assert read("ollama", pulled_anew, "llama3", cold).context_length is None


def test_only_models_that_are_used_are_asked_for_and_nothing_twice() -> None:
    answers = ask("ollama", OLLAMA, "llama3", "absent")
    assert [question.path for question in answers] == ["/api/tags", "/api/ps", "/api/show"]
    router = ask("openai", engines.llama_cpp_router(m="loaded", n="unloaded"), "m", "n")
    assert [question.path for question in router] == ["/v1/models", "/props", "/props?model=m&autoload=false"]


def test_what_is_shown_of_a_model_is_stamped_with_its_digest() -> None:
    answers = ask("ollama", OLLAMA, "llama3")
    show = next(question for question in answers if question.body)
    assert stamp_of("ollama", answers, show) == "d" * 64
    assert stamp_of("openai", ask("openai", OLLAMA, "llama3"), show) == "d" * 64
    assert stamp_of("ollama", answers, Question("/api/ps")) is None
    assert stamp_of("vllm", answers, Question("/v1/models")) is None


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("m", "registry.ollama.ai/library/m:latest"),
        ("Me/M:8b", "registry.ollama.ai/me/m:8b"),
        ("host:5000/me/m", "host:5000/me/m:latest"),
    ],
)
def test_names_are_compared_as_ollama_does(name: str, full: str) -> None:
    assert full_name(name) == full


@pytest.mark.parametrize(
    ("count", "words"), [(None, None), (999, "999"), (134_515_008, "134.5M"), (8_030_261_248, "8.0B")]
)
def test_parameters_are_told_as_people_write_them(count: int | None, words: str | None) -> None:
    assert size_in_words(count) == words


def test_a_list_without_end_is_read_to_its_bound_and_once_for_all_models() -> None:
    class Counted(dict[str, Any]):
        looked = 0

        def get(self, *key: Any) -> Any:
            Counted.looked += 1
            return super().get(*key)

    models = frozenset(f"m{number}" for number in range(300))
    rows = [Counted(name=f"m{number}", digest="d") for number in range(100_000)]
    answers = {Question("/api/tags"): Answer(200, {"models": rows}), Question("/api/ps"): Answer(200, {"models": []})}
    questions = next_questions("ollama", answers, models)
    assert len(questions) == len(models)
    assert {stamp_of("ollama", answers, question) for question in questions} == {"d"}
    assert facts_of("ollama", answers, "m7", UNKNOWN, 1.0).digest == "d"
    assert facts_of("ollama", answers, "m99999", UNKNOWN, 1.0).digest is None
    assert Counted.looked < 10_000
