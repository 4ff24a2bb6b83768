"""What recorded answers say of a helper: every engine's shape, and every other shape there could be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.helpers.answers import Answer
from orchestrator.helpers.identify import DIALECTS, all_questions, first_questions, recognised, unrecognised
from orchestrator.observed import HelperSilent
from schemas.ollama_names import full_name
from tests.fakes import engines

PYTHON = "BaseHTTP/0.6 Python/3.11.7"


def answers_of(documents, server="", status=200):
    return {path: Answer(status, document, server) for path, document in documents.items()}


READY = {"model": "m", "is_ready": True, "phase": "ready", "progress": None, "load_s": 1.0}
WORKER = {
    "/ready": READY,
    "/status": {"versions": {"orchestrate": "0.1.0"}, "memory": {"active_bytes": 500}, "context_length": 2048},
    "/v1/models": engines.openai_list("m", owner="orchestrate"),
}
# documents, server, engine, version, present, loaded, context
SHAPES = {
    "ollama": (
        engines.ollama("llama3.2:latest", "nomic-embed-text:v1.5", loaded=("llama3.2:latest",)), "",
        "ollama", "0.12.3", {"llama3.2:latest", "nomic-embed-text:v1.5"}, {"llama3.2:latest"},
        {"llama3.2:latest": 4096}),
    "ollama without a model": (engines.ollama(), "", "ollama", "0.12.3", set(), set(), {}),
    "vllm": (engines.vllm("qwen", "lora"), "uvicorn",
             "vllm", "0.11.0", {"qwen", "lora"}, {"qwen", "lora"}, {"qwen": 32768, "lora": 32768}),
    "llama.cpp": (engines.llama_cpp("smol"), "llama.cpp",
                  "llama.cpp", "b6700-1deee0f8", {"smol"}, {"smol"}, {"smol": 4096}),
    "llama.cpp router": (engines.llama_cpp_router(a="loaded", b="unloaded"), "",
                         "llama.cpp", None, {"a", "b", "a-alias", "b-alias"}, {"a", "a-alias"}, {}),
    "tei": (engines.tei("BAAI/bge"), "", "tei", "1.7.1", {"BAAI/bge"}, {"BAAI/bge"}, {"BAAI/bge": 512}),
    "infinity": (engines.infinity("bge", "rerank"), "", "infinity", None, {"bge", "rerank"}, {"bge", "rerank"}, {}),
    "infinity of old": (
        {"/models": {"object": "list", "data": {"id": "bge", "stats": {}, "owned_by": "infinity"}}}, "",
        "infinity", None, {"bge"}, {"bge"}, {}),
    "lm studio 0.3": (engines.lm_studio(a="loaded", b="not-loaded"), "",
                      "lm studio", None, {"a", "b"}, {"a"}, {"a": 8192, "b": 131072}),
    "lm studio 0.4": (engines.lm_studio_v1(a=2, b=0), "",
                      "lm studio", None, {"a", "a:2", "b"}, {"a", "a:2"}, {"a": 4096, "a:2": 4096, "b": 131072}),
    "mlx_lm.server": (engines.mlx_lm("/models/m"), PYTHON,
                      "mlx_lm.server", None, {"/models/m", "default_model"}, set(), {}),
    "localai": (engines.local_ai("a", "b", loaded="a"), "", "localai", "3.5.0", {"a", "b"}, {"a"}, {}),
    "worker": (WORKER, "", "orchestrate worker", "0.1.0", {"m"}, {"m"}, {"m": 2048}),
    "gateway": ({"/v1/models": engines.openai_list("chat", owner="orchestrate")}, "",
                "orchestrate gateway", None, {"chat"}, set(), {}),
    "sglang": ({"/v1/models": engines.openai_list("m", owner="sglang", max_model_len=99)}, "",
               "sglang", None, {"m"}, set(), {"m": 99}),
    "several owners": (
        {"/v1/models": {"data": [{"id": "a", "owned_by": "x"}, {"id": "b", "owned_by": "y"}]}}, "",
        "openai-compatible", None, {"a", "b"}, set(), {}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_each_engine_is_known_by_what_it_says(shape):
    documents, server, engine, version, present, loaded, context = SHAPES[shape]
    answers = answers_of(documents, server)
    dialect = recognised(answers, was_all_asked=True)
    seen = dialect.read(answers)
    assert (seen.engine, seen.version) == (engine, version)
    assert (seen.present, seen.loaded, dict(seen.context)) == (present, loaded, context)


def test_a_loading_worker_is_a_worker_with_nothing_loaded():
    answers = answers_of({"/ready": {**READY, "is_ready": False, "phase": "loading"}}, status=503)
    seen = recognised(answers, was_all_asked=True).read(answers)
    assert (seen.engine, seen.present, seen.loaded) == ("orchestrate worker", {"m"}, frozenset())


def test_stock_mlx_lm_is_known_by_its_health_where_it_has_no_hub_cache():
    answers = {"/v1/models": Answer(200, None, PYTHON), "/health": Answer(200, {"status": "ok"}, PYTHON)}
    assert recognised(answers, was_all_asked=True).read(answers).present == {"default_model"}
    assert recognised({"/v1/models": answers["/v1/models"]}, was_all_asked=True) is None


def test_a_mere_list_of_models_is_no_proof_before_everything_was_asked():
    answers = answers_of({"/v1/models": engines.openai_list("m", owner="library")})
    assert recognised(answers, was_all_asked=False) is None
    assert recognised(answers, was_all_asked=True).engine == "openai-compatible"


@pytest.mark.parametrize("api", ["openai", "ollama", "tei", "infinity", "worker"])
def test_the_first_questions_are_few_and_among_all(api):
    assert set(first_questions(api)) < set(all_questions())
    assert len(first_questions(api)) <= 2


@pytest.mark.parametrize(
    ("answers", "kind", "words"),
    [
        ({"/v1/models": Answer(401)}, "key", "asks for another key"),
        ({"/v1/models": Answer(503, {"error": {"message": "Loading model", "code": 503}})}, "loading", "is loading"),
        ({"/v1/models": Answer(404), "/props": Answer(200, "<html>")}, "stranger", "not as an inference server"),
        ({}, "stranger", "not as an inference server"),
    ],
)
def test_what_is_no_engine_is_told_as_what_it_is(answers, kind, words):
    silent = unrecognised("http://box:1", answers)
    assert isinstance(silent, HelperSilent)
    assert silent.kind == kind
    assert words in silent.reason


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "models", "id", "name", "owned_by", "status", "value", "meta", "size", "n_ctx",
                         "state", "aliases", "default_generation_settings", "loaded_instances", "config",
                         "key", "phase"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ANY_ANSWERS = st.dictionaries(
    st.sampled_from(sorted({path for dialect in DIALECTS for path in (*dialect.clues, *dialect.details)})),
    st.builds(Answer, st.sampled_from([200, 404, 503]), ANY_JSON, st.sampled_from(["", PYTHON])),
)


@given(ANY_ANSWERS, st.booleans())
def test_no_answer_of_any_shape_raises(answers, was_all_asked):
    dialect = recognised(answers, was_all_asked=was_all_asked)
    for each in DIALECTS:
        seen = each.read(answers)
        assert all(isinstance(name, str) and name for name in seen.present | seen.loaded)
    assert dialect is not None or unrecognised("http://box", answers).reason


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nomic-embed-text", "nomic-embed-text:latest"),
        ("Llama3.2", "llama3.2:latest"),
        ("library/m:1", "registry.ollama.ai/library/m:1"),
        ("me/m", "registry.ollama.ai/me/m:latest"),
        ("box:5000/me/m", "box:5000/me/m:latest"),
    ],
)
def test_ollama_fills_in_names(one, other):
    assert full_name(one) == full_name(other)


def test_ollama_tells_tags_and_owners_apart():
    assert len({full_name(name) for name in ("m", "m:1", "me/m", "box/me/m")}) == 4
