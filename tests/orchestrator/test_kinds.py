"""What plans and starts make of embedding and reranking models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.ask import curl_line, role_to_ask
from orchestrator.commands import worker_argv
from orchestrator.expand import Desired, expand
from orchestrator.footprint import unit_memory
from orchestrator.kinds import batch_conflicts, dimension_conflicts, kind_notes, pinned_dimensions
from orchestrator.observed import ModelFacts
from orchestrator.proof import DOCUMENTS, proof_body, proof_of
from schemas.base import ModelName, ServiceName, SlotId
from schemas.stack import Stack
from schemas.unit import WorkerSpec

MINILM = ModelFacts("bert", 6, 12, 12, 384, 1536, 512, 90_868_376, 384, "apache-2.0")


def stack(**roles: Any) -> Stack:
    tree = {
        "stack": "s", "nodes": {"here": {"reach": "local"}},
        "models": {
            "encoder": {"source": "path:/m", "kind": "embedding"},
            "talker": {"source": "path:/t"},
        },
        "services": {
            "embed": {"model": "encoder", "nodes": ["here"]},
            "few": {"model": "encoder", "nodes": ["here"], "max_batch": 4},
            "talk": {"model": "talker", "nodes": ["here"]},
        },
        "helpers": {"box": {"url": "http://h:1", "api": "ollama", "models": {"r": {}}}},
        "roles": roles or {"embedding": {"endpoints": {"e": {"service": "embed"}}, "dimensions": 384}},
        "gateway": {"node": "here"},
    }  # fmt: skip
    return Stack.model_validate_json(json.dumps(tree))


def desired(**roles: Any) -> Desired:
    return expand(stack(**roles), "/conf")


def worker(service: str) -> WorkerSpec:
    spec = desired().units[SlotId(f"{service}-0.0")].spec
    assert isinstance(spec, WorkerSpec)
    return spec


def test_only_workers_of_another_kind_than_chat_are_told_it() -> None:
    assert worker_argv("python", worker("embed"), "/m", 1)[-2:] == ["--kind", "embedding"]
    assert "--kind" not in worker_argv("python", worker("talk"), "/m", 1)


def test_more_texts_than_answers_are_computed_at_once_unless_the_stack_says_how_many() -> None:
    assert [worker(name).max_batch for name in ("embed", "few", "talk")] == [128, 4, 8]


def test_a_length_that_the_models_own_files_contradict_is_a_conflict() -> None:
    role = {"endpoints": {"e": {"service": "embed"}}, "dimensions": 768}
    (found,) = dimension_conflicts(desired(embedding=role), {ModelName("encoder"): MINILM})
    assert found.startswith("roles.embedding.dimensions: expected the 384 of encoder (service embed), found 768")
    assert not dimension_conflicts(desired(), {ModelName("encoder"): MINILM})
    assert not dimension_conflicts(desired(embedding=role), {})


@pytest.mark.parametrize("family", ["llama4", "deepseek_v41"])
def test_a_model_that_serves_one_request_at_a_time_is_a_conflict(family: str) -> None:
    known = {ModelName("talker"): ModelFacts(family), ModelName("encoder"): MINILM}
    (found,) = batch_conflicts(desired(), known)
    assert found == (
        "services.talk.model: expected a model that mlx-lm computes in batches, found talker of the family "
        f"{family}, whose caches serve one request at a time; name a model of another family, or serve it with "
        "engine: mlx-lm-server"
    )
    assert not batch_conflicts(desired(), {**known, ModelName("talker"): ModelFacts("llama")})
    assert not batch_conflicts(desired(), {})


def test_the_fallback_is_held_to_the_same_length() -> None:
    role = {
        "endpoints": {"e": {"helper": "box", "model": "r"}}, "dimensions": 768, "fallback": {"local": "embed"},
    }  # fmt: skip
    wanted = desired(embedding=role)
    assert len(dimension_conflicts(wanted, {ModelName("encoder"): MINILM})) == 1
    assert pinned_dimensions(wanted, ServiceName("embed")) == {"embedding": 768}
    assert not pinned_dimensions(wanted, ServiceName("talk"))


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "mit-research", "non-commercial"])
def test_a_licence_without_commercial_use_stands_in_the_plan(licence: str) -> None:
    facts = ModelFacts("qwen3", licence=licence)
    (note,) = kind_notes(desired(), {ModelName("encoder"): facts})
    assert note == f"encoder: its licence, {licence}, allows no commercial use"


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "gemma", "bsd-3-clause-clear", None])
def test_other_licences_are_not_worth_a_note(licence: str | None) -> None:
    assert not list(kind_notes(desired(), {ModelName("encoder"): ModelFacts("bert", licence=licence)}))


def test_a_helper_that_cannot_rank_is_named() -> None:
    role = {"endpoints": {"box": {"helper": "box", "model": "r"}}, "fallback": "skip"}
    assert list(kind_notes(desired(reranking=role), {})) == [
        "reranking is never asked of box: Ollama has no reranking API"
    ]


def test_an_encoder_needs_its_weights_and_one_layer_of_a_batch() -> None:
    needed, is_estimate = unit_memory(worker("embed"), None, MINILM)
    assert is_estimate
    assert needed is not None
    assert 0.5 < needed < 1.5


def test_a_stack_is_asked_what_it_can_do() -> None:
    vectors = {"endpoints": {"e": {"service": "embed"}}}
    assert role_to_ask(stack()) == ("embedding", "embedding")
    assert role_to_ask(stack(embedding=vectors, other={"endpoints": {"t": {"service": "talk"}}})) == ("other", "chat")
    assert "/v1/embeddings" in curl_line("http://h", "embedding", "embedding")


def test_a_vector_and_scores_are_proof_and_nothing_else_is() -> None:
    assert proof_of("embedding", {"data": [{"embedding": [1, 0.5]}]}).vector == (1.0, 0.5)
    results = [{"index": index, "relevance_score": score} for index, score in enumerate((0.1, 0.9, 0.2))]
    assert proof_of("reranking", {"results": results}).ranked[0] == (1, 0.9)
    assert proof_body("reranking", "m")["documents"] == list(DOCUMENTS)
    for wrong in (None, {}, {"data": []}, {"data": [{"embedding": []}]}, {"data": [{"embedding": [float("nan")]}]}):
        assert proof_of("embedding", wrong).fault
    for short in (None, {}, {"results": results[:2]}, {"results": [{"index": 0}]}):
        assert proof_of("reranking", short).fault
