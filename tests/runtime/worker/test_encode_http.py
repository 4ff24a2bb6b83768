"""Embedding and reranking workers as their clients see them: real processes, real requests, tiny real models."""

import concurrent.futures
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from schemas.messages import WorkerReadiness, WorkerStatus
from tests.runtime.worker import bodies
from tests.runtime.worker.process import DEADLINE_S, Worker, wait_until
from tests.runtime.worker.test_encode_work import EMBEDDING, LONG, RERANK
from tests.runtime.worker.test_http import assert_error
from tests.runtime.worker.test_process import run
from tests.runtime.worker.tiny_encoders import WIDTH, add_modules, write_bert, write_modernbert

TEXTS = ["the quick brown fox", "a", "what is the capital of France?", "user: lazy dog", "the answer " * 5]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "bert"
    write_bert(directory)
    add_modules(directory, "mean_tokens")
    return directory


@pytest.fixture(scope="module")
def encoder(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    log = tmp_path_factory.mktemp("encoder") / "log"
    with Worker(encoder_dir, log, "--kind", "embedding", "--max-batch", "4", "--max-waiting", "8") as worker:
        yield worker.wait_ready()


def embed(worker: Worker, texts: Any, **more: Any) -> list[list[float]]:
    response = worker.http.post("/v1/embeddings", json={"input": texts, **more})
    assert response.status_code == 200, response.text
    return [entry["embedding"] for entry in response.json()["data"]]


def post(worker: Worker, path: str, body: Any) -> httpx.Response:
    # httpx does not send half of a surrogate pair; JSON can say it.
    return worker.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def test_the_openai_client_gets_vectors_by_its_default_encoding(encoder: Worker) -> None:
    with openai.OpenAI(base_url=str(encoder.http.base_url.join("/v1")), api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="tiny", input=TEXTS)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    np.testing.assert_array_equal(
        np.array([entry.embedding for entry in answer.data], np.float32), np.array(embed(encoder, TEXTS), np.float32)
    )
    assert answer.usage.prompt_tokens == answer.usage.total_tokens


def test_many_requests_at_once_get_the_vectors_that_they_would_get_alone(encoder: Worker) -> None:
    alone = {text: embed(encoder, text)[0] for text in TEXTS}
    dice = random.Random(3)

    def visit(size: int) -> None:
        texts = [dice.choice(TEXTS) for _ in range(size)]
        np.testing.assert_allclose(embed(encoder, texts), [alone[text] for text in texts], atol=1e-6)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, [1, 30, 2, 1, 17, 5, 1, 40, 3, 8]))


def test_reports_are_those_of_every_worker(encoder: Worker) -> None:
    ready = WorkerReadiness.model_validate(encoder.http.get("/ready").json())
    assert (ready.is_ready, ready.kind, ready.dimensions) == (True, "embedding", WIDTH)
    encoder.wait_empty()
    before = WorkerStatus.model_validate(encoder.status())
    embed(encoder, TEXTS)
    after = WorkerStatus.model_validate(encoder.status())
    assert after.requests.completed == before.requests.completed + 1
    assert after.tokens.prompt > before.tokens.prompt
    assert after.tokens.generated == 0
    assert after.memory.model_bytes > 0
    assert after.context_length == 64
    model = encoder.http.get("/v1/models").json()["data"][0]
    assert (model["id"], model["context_length"], model["loaded"]) == ("tiny", 64, True)
    assert (model["capabilities"], model["dimensions"]) == (["embedding", "rerank"], WIDTH)
    assert "completion" in model["lacks"]


def test_an_embedding_worker_ranks_too(encoder: Worker) -> None:
    vectors = np.array(embed(encoder, ["fox", *TEXTS]))
    body = {"query": "fox", "documents": TEXTS, "top_n": 3}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        results = encoder.http.post(path, json=body).json()["results"]
        scores = vectors[1:] @ vectors[0]
        assert [result["index"] for result in results] == list(np.argsort(-scores)[:3])


def test_a_cross_encoder_worker_ranks_and_does_nothing_else(tmp_path: Path) -> None:
    checkpoint = write_modernbert(tmp_path / "model", head=True)
    with Worker(checkpoint.directory, tmp_path / "log", "--kind", "reranking") as worker:
        worker.wait_ready()
        results = worker.http.post("/v1/rerank", json={"query": "fox", "documents": TEXTS}).json()["results"]
        scores = [result["relevance_score"] for result in results]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score < 1 for score in scores)
        for path in ("/v1/embeddings", "/v1/chat/completions", "/v1/completions"):
            response = worker.http.post(path, json={"input": "a"})
            assert_error(response, 404, None)
            assert "/v1/rerank" in response.json()["error"]["message"]
        assert worker.http.get("/ready").json()["dimensions"] is None


def test_a_chat_worker_names_the_paths_that_it_answers(worker: Worker) -> None:
    for path in ("/v1/embeddings", "/v1/rerank"):
        response = worker.http.post(path, json={"input": "a"})
        assert_error(response, 404, None)
        assert "/v1/chat/completions" in response.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "says"), [("embedding", "`kind: chat`"), ("reranking", "`kind: chat`")])
def test_a_chat_model_is_not_served_as_another_kind(tiny_model_dir: Path, kind: str, says: str) -> None:
    finished = run("--model-dir", str(tiny_model_dir), "--port", "0", "--kind", kind)
    assert finished.returncode == 1
    assert says in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_an_embedding_model_is_not_served_as_chat(encoder_dir: Path) -> None:
    finished = run("--model-dir", str(encoder_dir), "--port", "0")
    assert finished.returncode == 1
    assert "`kind: embedding`" in finished.stderr


def test_only_chat_models_are_sharded(encoder_dir: Path) -> None:
    finished = run("--model-dir", str(encoder_dir), "--port", "0", "--kind", "embedding", "--size", "2")
    assert finished.returncode == 2
    assert "--size" in finished.stderr


def test_no_body_stops_the_worker(encoder: Worker) -> None:
    for _, raw in bodies.BROKEN:
        for path in ("/v1/embeddings", "/v1/rerank"):
            assert_error(encoder.http.post(path, content=raw), 400, None)
    for body, param in EMBEDDING:
        response = post(encoder, "/v1/embeddings", body)
        assert 400 <= response.status_code < 500
        assert response.json()["error"]["param"] == param or body.get("prompt_name")
    for body, param in RERANK:
        if "instruction" not in body:
            response = post(encoder, "/v1/rerank", body)
            assert 400 <= response.status_code < 500
            assert response.json()["error"]["param"] == param
    response = encoder.http.post("/v1/embeddings", json={"input": LONG})
    assert_error(response, 400, "input")
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert len(embed(encoder, "a")[0]) == WIDTH


def test_a_client_that_leaves_gives_its_place_up(encoder: Worker) -> None:
    encoder.wait_empty()

    def has_left_in_time() -> bool:
        """Leave while a request is computed; tell whether it was not over by then, as it may be."""
        before = encoder.status()["requests"]

        def is_computed() -> bool:
            found = encoder.status()
            return found["queue"]["batch"] > 0 or found["requests"] != before

        with encoder.sending("/v1/embeddings", {"input": ["the fox"] * 2048}):
            wait_until(is_computed, "the request is computed")
        encoder.wait_empty()
        return bool(encoder.status()["requests"]["cancelled"] > before["cancelled"])

    for _ in range(5):
        wait_until(has_left_in_time, "a request is cancelled")
    assert len(embed(encoder, "a")[0]) == WIDTH


@pytest.mark.slow
def test_more_than_the_places_are_refused_with_a_time_to_come_back(encoder: Worker) -> None:
    def visit(_: int) -> httpx.Response:
        with httpx.Client(base_url=encoder.http.base_url, timeout=DEADLINE_S) as client:
            return client.post("/v1/embeddings", json={"input": ["the fox"] * 400})

    def refused() -> list[httpx.Response]:
        """Come at once, as far as the machine lets them, and return who was refused."""
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            responses = list(pool.map(visit, range(24)))
        assert {response.status_code for response in responses} <= {200, 503}
        return [response for response in responses if response.status_code == 503]

    for response in wait_until(refused, "somebody is refused"):
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.slow
def test_term_lets_requests_under_way_finish(encoder_dir: Path, tmp_path: Path) -> None:
    with Worker(encoder_dir, tmp_path / "log", "--kind", "embedding", "--drain-s", "600") as worker:
        worker.wait_ready()
        with (
            httpx.Client(base_url=worker.http.base_url, timeout=DEADLINE_S) as client,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            answer = pool.submit(client.post, "/v1/embeddings", json={"input": ["the fox"] * 2048})
            wait_until(lambda: worker.status()["queue"]["batch"] or answer.done(), "the request is computed")
            worker.terminate()
            assert answer.result().status_code == 200
        assert worker.wait_exit() == 0


@pytest.mark.slow
def test_numbers_that_are_none_are_an_error_and_damaged_weights_end_the_worker(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    checkpoint = write_bert(tmp_path / "model")
    fox = checkpoint.tokenizer.encode(" fox").ids[1]
    checkpoint.weights["embeddings.word_embeddings.weight"][fox] = np.nan
    save_file(checkpoint.weights, checkpoint.directory / "model.safetensors")
    with Worker(checkpoint.directory, tmp_path / "log", "--kind", "embedding") as worker:
        worker.wait_ready()
        response = worker.http.post("/v1/embeddings", json={"input": ["a", "the fox"]})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "generation_failed"
        assert len(embed(worker, "a")[0]) == WIDTH
    checkpoint.weights["embeddings.word_embeddings.weight"][:] = np.nan
    save_file(checkpoint.weights, checkpoint.directory / "model.safetensors")
    finished = run("--model-dir", str(checkpoint.directory), "--port", "0", "--kind", "embedding")
    assert finished.returncode == 1
    assert "damaged" in finished.stderr
