"""Several answers, log probabilities, biases and cached prompts, as OpenAI's client sees them."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import openai
import pytest

from runtime.worker.batch import TokenReport
from runtime.worker.jobs import choice_seed
from runtime.worker.logprobs import completion
from schemas.messages import WorkerStatus
from tests.runtime.worker import bodies
from tests.runtime.worker.process import Worker
from tests.runtime.worker.test_http import events

PROMPT = "the quick brown fox"
DICE = {"prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 7}


@pytest.fixture
def client(worker: Worker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def think(tiny_model_dir: Path) -> Any:
    """Return what gives the model's own log probabilities after a text, and its tokenizer."""
    model, tokenizer = mlx_lm.load(str(tiny_model_dir))

    def logprobs(text: str) -> list[float]:
        row = model(mx.array(tokenizer.encode(text))[None])[0, -1].astype(mx.float32)
        return (row - mx.logsumexp(row)).tolist()

    return logprobs, tokenizer


def chosen(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the tokens and log probabilities of a choice of either kind."""
    told = choice["logprobs"]
    if "content" in told:
        return [(entry["token"], entry["logprob"]) for entry in told["content"]]
    return list(zip(told["tokens"], told["token_logprobs"], strict=True))


def test_log_probabilities_of_a_chat_are_the_models_own(worker: Worker) -> None:
    body = bodies.chat(max_tokens=8, temperature=0, logprobs=True, top_logprobs=4)
    choice = worker.chat(**body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 8
    data = b"".join(bytes(entry["bytes"]) for entry in content)
    assert data.decode("utf-8", "replace").rstrip("\ufffd") == choice["message"]["content"].rstrip("\ufffd")
    for entry in content:
        top = entry["top_logprobs"]
        assert [each["logprob"] for each in top] == sorted((each["logprob"] for each in top), reverse=True)
        assert len(top) == 4
        # Greedy: the chosen token is the most probable one.
        assert (top[0]["token"], top[0]["logprob"]) == (entry["token"], entry["logprob"])
        assert sum(math.exp(each["logprob"]) for each in top) <= 1.001


def test_log_probabilities_of_a_text_are_those_of_the_model_alone(worker: Worker, think: Any) -> None:
    logprobs, _ = think
    expected = logprobs(PROMPT)
    best = max(range(len(expected)), key=expected.__getitem__)
    for more in ({}, {"logit_bias": {str(best): -100}}, {"temperature": 2, "top_k": 1}, {"frequency_penalty": 2}):
        body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5, "return_token_ids": True, **more}
        choice = worker.complete(**body).json()["choices"][0]
        told = choice["logprobs"]
        assert max(told["top_logprobs"][0].values()) == pytest.approx(expected[best], abs=1e-3)
        (token,) = choice["token_ids"]
        assert told["token_logprobs"][0] == pytest.approx(expected[token], abs=1e-3)
        assert ("logit_bias" in more) == (told["token_logprobs"][0] < max(told["top_logprobs"][0].values()))


def test_offsets_point_at_each_token_of_the_text(worker: Worker) -> None:
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logprobs": 0}
    choice = worker.complete(**body).json()["choices"][0]
    told = choice["logprobs"]
    assert told["text_offset"][0] == 0
    assert len(told["tokens"]) == len(told["text_offset"]) == len(told["top_logprobs"]) == 20
    for token, offset, top in zip(told["tokens"], told["text_offset"], told["top_logprobs"], strict=True):
        assert set(top) == {token}
        if not token.startswith("bytes:"):
            assert choice["text"].startswith(token, offset) or "\ufffd" in choice["text"]


def test_half_a_character_has_a_name_of_its_own() -> None:
    half = TokenReport(3, b"\xe2\x82", -1.0, ((b"\xe2\x82", -1.0), (b"\xe2\x83", -2.0)))
    told = completion([half])
    assert told["tokens"] == ["bytes:\\xe2\\x82"]
    assert told["top_logprobs"] == [{"bytes:\\xe2\\x82": -1.0, "bytes:\\xe2\\x83": -2.0}]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_tells_the_same_log_probabilities_as_the_whole_answer(worker: Worker, kind: str) -> None:
    if kind == "chat":
        body = bodies.chat(max_tokens=20, seed=3, temperature=1, logprobs=True, top_logprobs=2, n=2)
        ask = worker.chat
    else:
        body = {**DICE, "logprobs": 2, "n": 2}
        ask = worker.complete
    whole = ask(**body).json()["choices"]
    *chunks, _ = events(ask(**body, stream=True))
    for index in (0, 1):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        told = [pair for part in parts if part["logprobs"] for pair in chosen(part)]
        expected = chosen(whole[index])
        assert [token for token, _ in told] == [token for token, _ in expected]
        assert [value for _, value in told] == pytest.approx([value for _, value in expected], abs=1e-3)
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["length"]


@pytest.mark.parametrize("token", [5, 40])
def test_a_bias_of_100_demands_a_token_and_one_of_minus_100_forbids_it(worker: Worker, token: int, think: Any) -> None:
    _, tokenizer = think
    body = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0, "logprobs": 0, "logit_bias": {str(token): 100}}
    told = worker.complete(**body).json()["choices"][0]["logprobs"]
    assert told["tokens"] == [tokenizer.decode([token])] * 3
    free = worker.text_of(prompt=PROMPT, max_tokens=10, temperature=0)
    ban = {str(each): -100 for each in set(tokenizer.encode(free))}
    told = worker.complete(prompt=PROMPT, max_tokens=10, temperature=0, logprobs=0, logit_bias=ban).json()
    assert not {tokenizer.decode([int(each)]) for each in ban} & set(told["choices"][0]["logprobs"]["tokens"])


def test_choices_of_a_seed_can_be_had_again_and_the_first_is_what_one_alone_is(worker: Worker) -> None:
    answer = worker.complete(**DICE, n=4).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts[0] == worker.text_of(**DICE)
    assert texts[2] == worker.text_of(**{**DICE, "seed": choice_seed(7, 2)})
    prompt_tokens = worker.complete(prompt=PROMPT, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (prompt_tokens, 48)
    with ThreadPoolExecutor(6) as pool:
        noise = [pool.submit(worker.text_of, prompt="lazy dog", max_tokens=20, temperature=1) for _ in range(4)]
        again = pool.submit(worker.complete, **DICE, n=4, best_of=4).result().json()
        assert [choice["text"] for choice in again["choices"]] == texts
        for each in noise:
            each.result()


def test_more_choices_than_the_batch_has_places_are_all_answered(worker: Worker) -> None:
    worker.wait_empty()
    before = worker.status()["requests"]["completed"]
    answer = worker.complete(**{**DICE, "prompt": "lazy dog " * 30}, n=9).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 9
    assert answer["usage"]["completion_tokens"] == 9 * 12
    assert worker.status()["requests"]["completed"] == before + 1


def test_streamed_choices_are_told_apart(worker: Worker) -> None:
    body = bodies.chat(max_tokens=15, temperature=1, seed=2, n=3)
    whole = [choice["message"]["content"] for choice in worker.chat(**body).json()["choices"]]
    *chunks, done = events(worker.chat(**body, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    usage = chunks.pop()["usage"]
    assert usage["completion_tokens"] == 45
    texts = ["", "", ""]
    roles = [0, 0, 0]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        roles[choice["index"]] += "role" in choice["delta"]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == whole
    assert roles == [1, 1, 1]


def test_the_second_turn_of_a_conversation_computes_only_what_is_new(worker: Worker) -> None:
    worker.wait_empty()  # what still runs may need the room of what is kept
    before = WorkerStatus.model_validate(worker.status()).prompt_cache
    assert before is not None
    messages = [{"role": "user", "content": "what is the answer to the question? " * 10}]
    first = worker.chat(messages=messages, max_tokens=30, temperature=0).json()
    messages.append(first["choices"][0]["message"])
    messages.append({"role": "user", "content": "why?"})
    second = worker.chat(messages=messages, max_tokens=5, temperature=0).json()["usage"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] < first["usage"]["prompt_tokens"]
    # The answer's own tokens may be spelt otherwise when the client sends them back as text.
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    after = WorkerStatus.model_validate(worker.status()).prompt_cache
    assert after is not None
    assert after.hits > before.hits
    assert after.cached_tokens - before.cached_tokens >= second["prompt_tokens_details"]["cached_tokens"]
    assert 0 < after.bytes <= after.limit_bytes


def test_openais_client_reads_everything(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    # Greedy, so that none ends before its length: the end is a token that can be drawn.
    told_more = {"logprobs": True, "top_logprobs": 2, "n": 2, "temperature": 0}
    asked = {"model": "tiny", "messages": messages, "max_tokens": 6, **told_more}
    answer = client.chat.completions.create(**asked, logit_bias={"5": -100})
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].logprobs is not None
    assert len(answer.choices[1].logprobs.content or []) == 6
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    told = 0
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            told += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert told == 12
    text = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, logprobs=3, n=2, temperature=0)
    assert text.choices[1].logprobs is not None
    assert len(text.choices[1].logprobs.top_logprobs or []) == 4
