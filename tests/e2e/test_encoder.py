"""The shipped quickstart with its real encoder: vectors for OpenAI's client, rankings, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from tests.e2e.conftest import trial_in
from tests.e2e.trial import REPOSITORY, Trial, poll
from tests.ports import free_port

RERANK = {
    "model": "reranking",
    "query": "What is the capital of France?",
    "documents": ["Bread is baked in an oven.", "Paris is the capital of France.", "The sea is deep."],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return the shipped stack with its encoder always in memory and a tiny model for chat, up."""
    trial = trial_in(tmp_path_factory.mktemp("encoder") / "trial", quickstart_cache, model=tiny_model_dir)
    shutil.copy(REPOSITORY / "conf" / "stacks" / "quickstart.yaml", trial.file)
    trial.edit("port: 8000", f"port: {trial.port}")
    trial.edit(
        "    start: on-demand           # in memory from the first request on, until 15 minutes without one\n", ""
    )
    trial.edit("    idle_stop_s: 900\n", "")
    try:
        trial.run("up", "quickstart", "--yes")
        yield trial
    finally:
        trial.close()


def post(trial: Trial, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{trial.url}{path}", json=body, timeout=60, trust_env=False)


def embedded(trial: Trial, *texts: str) -> CreateEmbeddingResponse:
    with openai.OpenAI(base_url=f"{trial.url}/v1", api_key="none", timeout=120) as client:
        return client.embeddings.create(model="embedding", input=list(texts))


def test_texts_of_like_meaning_are_near(encoder: Trial) -> None:
    cat, kitten, physics = (item.embedding for item in embedded(encoder, "a cat", "a kitten", "quantum physics").data)
    assert len(cat) == 384

    def nearness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert nearness(cat, kitten) > 0.6
    assert nearness(cat, physics) < 0.4
    assert abs(nearness(cat, cat) - 1.0) < 1e-3  # a unit vector


def test_documents_are_ranked_for_a_query(encoder: Trial) -> None:
    answer = post(encoder, "/v1/rerank", {**RERANK, "top_n": 2, "return_documents": True})
    best, second = answer.json()["results"]
    assert best["document"]["text"] == "Paris is the capital of France."
    assert best["relevance_score"] > 0.5 > second["relevance_score"]


def test_a_length_that_the_model_does_not_have_is_refused_by_request_and_plan(encoder: Trial) -> None:
    refused = post(encoder, "/v1/embeddings", {"model": "embedding", "input": "hi", "dimensions": 100})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
    shown = encoder.run("plan", "quickstart", "roles.embedding.dimensions=768", code=None).stdout
    assert "Conflict: roles.embedding.dimensions: expected the 384 of all-minilm-l6-v2" in shown


def test_the_older_shape_falls_back_to_our_own_worker(encoder: Trial) -> None:
    text = encoder.file.read_text()
    lost = f"http://127.0.0.1:{free_port()}"
    encoder.file.write_text(
        f'{text}\nhelper_nodes: {{embeddings: {{url: "{lost}", model: nomic, timeout_sec: 10, fallback: "local"}}}}\n'
    )
    try:
        shown = encoder.run("plan", "quickstart", code=None).stdout
        assert "Note: helper_nodes.embeddings is read as roles.embeddings: 127.0.0.1, then embed" in shown
        body = {"model": "embeddings", "input": "hi"}
        answer = poll(lambda: (found := post(encoder, "/v1/embeddings", body)).status_code == 200 and found)
        assert answer.headers["x-orchestrate-fallback"] == "embed"
        assert len(answer.json()["data"][0]["embedding"]) == 384
    finally:
        encoder.file.write_text(text)


def test_without_a_ranker_documents_keep_their_order_until_it_is_back(encoder: Trial) -> None:
    os.kill(encoder.pids()["embed-0.0"], signal.SIGKILL)
    poll(lambda: "embed-0.0" not in encoder.units())
    answer = post(encoder, "/v1/rerank", RERANK)
    assert answer.headers["x-orchestrate-fallback"] == "skip"
    assert [(each["index"], each["ranked"]) for each in answer.json()["results"]] == [(n, False) for n in range(3)]
    assert post(encoder, "/v1/embeddings", {"model": "embedding", "input": "hi"}).status_code == 503
    encoder.run("apply", "quickstart", "--yes")
    poll(lambda: post(encoder, "/v1/rerank", RERANK).headers.get("x-orchestrate-fallback") is None or None)
    assert len(embedded(encoder, "back").data[0].embedding) == 384
