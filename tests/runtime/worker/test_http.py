"""The worker as its clients see it: a real process, real requests, a tiny real model."""

import concurrent.futures
import contextlib
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlx_lm
import pytest

from runtime.worker.http.exchange import MAX_BODY_BYTES
from schemas.messages import WorkerReadiness, WorkerStatus
from schemas.stack import Gateway
from tests.runtime.worker import bodies
from tests.runtime.worker.process import DEADLINE_S, Worker, wait_until
from tests.runtime.worker.test_text import first_stop

PROMPTS = ["the quick brown fox", "a", "what is the capital of France? " * 40, "user: lazy dog\n", "é\N{PILE OF POO}"]


def events(response: httpx.Response) -> list[Any]:
    """Return the stream's data, the terminator as text; comments, which keep a silent stream open, are left out."""
    frames = response.content.decode("utf-8").split("\n\n")
    assert frames.pop() == ""
    datas = [frame.removeprefix("data: ") for frame in frames if not frame.startswith(":")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def assert_error(response: httpx.Response, status: int, param: str | None) -> None:
    """Check OpenAI's error shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param


@pytest.fixture(scope="session")
def reference(tiny_model_dir: Path) -> dict[str, str]:
    """What `mlx_lm` itself generates greedily, as text: 40 tokens for each prompt."""
    model, tokenizer = mlx_lm.load(str(tiny_model_dir))
    texts = {}
    for prompt in PROMPTS:
        responses = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=40)
        texts[prompt] = tokenizer.decode([response.token for response in responses])
    return texts


def test_greedy_text_is_that_of_mlx_lm(worker: Worker, reference: dict[str, str]) -> None:
    for prompt in PROMPTS:
        assert worker.text_of(prompt=prompt, max_tokens=40, temperature=0) == reference[prompt]


def test_greedy_text_is_the_same_in_a_batch_of_mixed_lengths(worker: Worker, reference: dict[str, str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        asked = [
            (prompt, pool.submit(worker.text_of, prompt=prompt, max_tokens=40, temperature=0)) for prompt in PROMPTS * 2
        ]
        for prompt, text in asked:
            assert text.result() == reference[prompt]


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(worker: Worker) -> None:
    wanted = {"prompt": "the lazy dog", "max_tokens": 30, "temperature": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.01}
    alone = worker.text_of(**wanted, seed=11)
    assert worker.text_of(**wanted, seed=11) == alone
    assert worker.text_of(**wanted, seed=12) != alone
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        noise = [pool.submit(worker.text_of, **{**wanted, "prompt": prompt}) for prompt in PROMPTS]
        again = [pool.submit(worker.text_of, **wanted, seed=11) for _ in range(3)]
        assert [text.result() for text in again] == [alone] * 3
        for text in noise:
            text.result()


@pytest.mark.parametrize("narrow", [{"top_p": 0}, {"temperature": 1e-40}, {"temperature": 1e-320}])
def test_sampling_as_narrow_as_can_be_is_greedy(
    worker: Worker, reference: dict[str, str], narrow: dict[str, float]
) -> None:
    for prompt in PROMPTS:
        assert worker.text_of(**{"prompt": prompt, "max_tokens": 40, "temperature": 2, **narrow}) == reference[prompt]


def test_without_a_seed_texts_differ(worker: Worker) -> None:
    wanted = {"prompt": "the lazy dog", "max_tokens": 30, "temperature": 1.5}
    assert worker.text_of(**wanted) != worker.text_of(**wanted)


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 5}, {"frequency_penalty": 2}, {"presence_penalty": 2}])
def test_penalties_change_a_repetitive_answer(worker: Worker, penalty: dict[str, float]) -> None:
    wanted = {"prompt": "the the the the", "max_tokens": 60, "temperature": 0}
    assert worker.text_of(**wanted, **penalty) != worker.text_of(**wanted)


def test_a_stop_string_ends_the_answer_before_itself(worker: Worker, reference: dict[str, str]) -> None:
    text = reference[PROMPTS[0]]
    for begin in (3, 7, 12):
        stops = [text[begin : begin + 4], "never there"]
        response = worker.complete(prompt=PROMPTS[0], max_tokens=40, temperature=0, stop=stops)
        choice = response.json()["choices"][0]
        assert choice["text"] == first_stop(text, stops)
        assert choice["finish_reason"] == "stop"
        assert response.json()["usage"]["completion_tokens"] < 40


def test_chat_answer_has_the_shape_of_openai(worker: Worker) -> None:
    answer = worker.chat(**bodies.chat(max_tokens=5, temperature=0, model="tiny")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_stream_says_the_same_as_the_whole_answer(worker: Worker, include_usage: bool) -> None:
    body = bodies.chat(max_tokens=25, temperature=0)
    whole = worker.chat(**body).json()
    response = worker.chat(**body, stream=True, stream_options={"include_usage": include_usage})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert not {"content-encoding", "alt-svc"} & set(response.headers)
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    if include_usage:
        last = chunks.pop()
        cached = last["usage"].pop("prompt_tokens_details")["cached_tokens"]
        assert cached == last["usage"]["prompt_tokens"] - 1
        del whole["usage"]["prompt_tokens_details"]
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant"
    assert not any("role" in choice["delta"] for choice in choices[1:])
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


def test_completion_stream_says_the_same_as_the_whole_answer(worker: Worker, reference: dict[str, str]) -> None:
    response = worker.complete(prompt=PROMPTS[4], max_tokens=40, temperature=0, stream=True)
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == reference[PROMPTS[4]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_token_prompts_are_continued(worker: Worker, tiny_model_dir: Path, reference: dict[str, str]) -> None:
    _, tokenizer = mlx_lm.load(str(tiny_model_dir))
    tokens = tokenizer.encode(PROMPTS[0])
    assert worker.text_of(prompt=tokens, max_tokens=40, temperature=0) == reference[PROMPTS[0]]


@pytest.mark.parametrize("body", bodies.TOLERATED)
def test_tolerated_bodies_are_answered(worker: Worker, body: dict[str, Any]) -> None:
    response = worker.chat(**body)
    assert response.status_code == 200, response.text


def test_a_prompt_beyond_the_context_is_refused(worker: Worker) -> None:
    length = worker.status()["context_length"]
    for prompt in ("a b " * length, [1] * length, "a " * 2_000_000):
        response = worker.complete(prompt=prompt)
        assert_error(response, 400, "prompt")
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_oversized_body_is_413_and_its_sender_sees_it(worker: Worker, path: str, is_chunked: bool) -> None:
    body = b" " * (MAX_BODY_BYTES + 2_000_000)
    assert_error(worker.http.post(path, content=iter([body]) if is_chunked else body), 413, None)


def test_a_body_that_the_gateway_lets_pass_by_default_is_read(worker: Worker) -> None:
    limit = int(Gateway(node="here").body_limit_mib * 1024 * 1024)
    padding = "x" * (limit - 1000)
    assert worker.complete(prompt="a", max_tokens=1, padding=padding).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/status", 405),
    ],
)
def test_unknown_paths_and_methods_have_the_error_shape(worker: Worker, method: str, path: str, status: int) -> None:
    assert_error(worker.http.request(method, path), status, None)


def test_reports(worker: Worker) -> None:
    assert worker.http.get("/health").json() == {"status": "ok"}
    assert WorkerReadiness.from_json(worker.http.get("/ready").content).is_ready
    status = WorkerStatus.from_json(worker.http.get("/status").content)
    assert status.model == "tiny"
    assert status.memory.model_bytes > 0
    assert status.versions.mlx_lm.startswith("0.32.")
    models = worker.http.get("/v1/models").json()
    (model,) = models["data"]
    assert model["id"] == "tiny"
    assert model["context_length"] == model["max_model_len"] == status.context_length
    assert {"completion", "json_schema", "logprobs"} <= set(model["capabilities"])
    assert {"vision", "embedding"} <= set(model["lacks"])
    assert (model["loaded"], model["architecture"], model["format"]) == (True, "llama", "mlx")
    assert model["size_bytes"] == status.memory.model_bytes
    assert model["parameters"] > 0 and "expires_at" not in model


LONG = {"prompt": "the quick brown fox", "max_tokens": 20_000, "temperature": 0}
"""Greedy: a sampled answer may end by itself at any token."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fields", [{}, {"seed": 3, "temperature": 0.1}, {"user": "x" * 200_000}], ids=["plain", "seeded", "large"]
)
def test_a_client_that_leaves_frees_its_place(worker: Worker, fields: dict[str, Any], stream: bool) -> None:
    worker.wait_empty()
    cancelled = worker.status()["requests"]["cancelled"]
    with worker.sending("/v1/completions", {**LONG, **fields, "stream": stream}) as connection:
        wait_until(lambda: worker.status()["queue"]["batch"] == 1, "it is in the batch")
        if stream:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    worker.wait_empty()
    assert worker.status()["requests"]["cancelled"] == cancelled + 1


@contextlib.contextmanager
def full_queue(worker: Worker) -> Iterator[None]:
    """Hold as many streams as the worker admits, all of them running or waiting, while the block runs."""
    queue = worker.status()["queue"]
    full = (queue["batch_limit"], queue["waiting_limit"])
    with (
        concurrent.futures.ThreadPoolExecutor(sum(full)) as pool,
        httpx.Client(base_url=worker.http.base_url, timeout=httpx.Timeout(DEADLINE_S)) as client,
    ):
        request = client.build_request("POST", "/v1/completions", json={**LONG, "stream": True})
        for _ in range(sum(full)):
            pool.submit(client.send, request, stream=True)
        worker.wait_queue(*full)
        yield


def test_a_full_queue_refuses_at_once_and_recovers(worker: Worker) -> None:
    worker.wait_empty()
    with full_queue(worker):
        response = worker.complete(prompt="a")
        assert_error(response, 503, None)
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    worker.wait_empty()
    assert worker.complete(prompt="a", max_tokens=1).status_code == 200


RAW = [
    b"GARBAGE\r\n\r\n",
    b"POST /v1/completions HTTP/9.9\r\nHost: a\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: lots\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{",
    b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    b"\0" * 1000,
    b"",
]


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_broken_http_does_not_disturb_the_worker(worker: Worker, raw: bytes) -> None:
    url = worker.http.base_url
    with socket.create_connection((url.host, url.port), timeout=DEADLINE_S) as connection:
        # Who answers before it has read all of it may have reset the connection by now: nothing can be shut then.
        with contextlib.suppress(OSError):
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(65536)
            assert not answer or int(answer.split()[1]) >= 400
    assert worker.complete(prompt="a", max_tokens=2).status_code == 200


def test_memory_does_not_grow_with_requests(worker: Worker) -> None:
    def serve(count: int) -> None:
        # The same prompts and answers again and again: what is kept of them takes more than the bytes that it counts.
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: worker.text_of(prompt=f"{n % 40} the", max_tokens=4, temperature=0), range(count)))
        worker.wait_empty()

    def used() -> int:
        memory = worker.status()["memory"]
        return int(memory["active_bytes"] - memory["prompt_cache_bytes"])

    serve(80)
    first = used()
    serve(160)
    # The thread lets go of the last round behind its answers.
    wait_until(lambda: used() <= first + 100_000, "160 more requests have left nothing behind")


def test_a_crowd_that_comes_and_goes_leaves_every_place_free(worker: Worker, reference: dict[str, str]) -> None:
    dice = random.Random(5)

    def visit(plan: tuple[int, bool, float]) -> None:
        tokens, stream, patience_s = plan
        body = {"prompt": "the quick", "max_tokens": tokens, "stream": stream, "seed": tokens}
        with worker.sending("/v1/completions", body) as connection, contextlib.suppress(TimeoutError):
            connection.settimeout(patience_s)
            assert connection.recv(65536)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 503")

    plans = [(dice.choice([1, 20, 5000]), dice.random() < 0.5, dice.uniform(0.005, 0.3)) for _ in range(80)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(visit, plans))

    worker.wait_empty()
    assert worker.text_of(prompt=PROMPTS[0], max_tokens=40, temperature=0) == reference[PROMPTS[0]]
