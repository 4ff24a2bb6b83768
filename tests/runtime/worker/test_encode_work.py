"""Requests for vectors and rankings against a tiny real model, without a worker around it."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.worker.encode.encoder import Encoder, load
from runtime.worker.encode.request import parse_embedding, parse_rerank
from runtime.worker.encode.rows import Texts
from runtime.worker.encode.work import embedding_work, rerank_work
from runtime.worker.errors import RequestError
from tests.runtime.worker.encode_asking import ask, embedding, ranking
from tests.runtime.worker.tiny_encoders import POSITIONS, add_modules, write_bert, write_qwen3

LONG = "the fox " * 200


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("bert")
    write_bert(directory)
    prompts = {"prompts": {"query": "ask: "}, "default_prompt_name": None}
    add_modules(directory, "mean_tokens", config_sentence_transformers=prompts)
    return load(directory, "embedding", None, lambda _: None)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("cross")
    write_bert(directory, head=True)
    return load(directory, "reranking", None, lambda _: None)


@pytest.fixture(scope="module")
def matryoshka(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("cut")
    write_bert(directory)
    add_modules(directory, "mean_tokens", config_sentence_transformers={"matryoshka_dimensions": [8, 16]})
    return load(directory, "embedding", None, lambda _: None)


def vectors(answer: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(entry["embedding"], np.float32) for entry in answer["data"]]


def test_base64_holds_the_same_32_bit_numbers_as_the_list(encoder: Encoder) -> None:
    body = {"input": ["the fox", "a"]}
    plain = embedding(encoder, **body)
    packed = embedding(encoder, **body, encoding_format="base64")
    assert [entry["index"] for entry in plain["data"]] == [0, 1]
    for vector, entry in zip(vectors(plain), packed["data"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(entry["embedding"]), "<f4"), vector)
    assert plain["usage"] == packed["usage"]
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] > 0


def test_tokens_are_taken_exactly_as_they_are_given(encoder: Encoder) -> None:
    tokens = encoder.reading.texts.tokenizer.encode("the fox").ids
    (text,) = vectors(embedding(encoder, input="the fox"))
    for body in (tokens, [tokens]):
        (vector,) = vectors(embedding(encoder, input=body))
        np.testing.assert_allclose(vector, text, atol=1e-6)


def test_a_prompt_is_put_in_front(encoder: Encoder) -> None:
    (asked,) = vectors(embedding(encoder, input="fox", prompt_name="query"))
    (plain,) = vectors(embedding(encoder, input="ask: fox"))
    np.testing.assert_allclose(asked, plain, atol=1e-6)
    with pytest.raises(RequestError, match="it has: query") as refusal:
        embedding(encoder, input="fox", prompt_name="passage")
    assert refusal.value.param == "prompt_name"


def test_vectors_are_cut_only_where_the_model_was_trained_for_it(encoder: Encoder, matryoshka: Encoder) -> None:
    (whole,) = vectors(embedding(matryoshka, input="fox"))
    (cut,) = vectors(embedding(matryoshka, input="fox", dimensions=8))
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    assert len(vectors(embedding(encoder, input="fox", dimensions=24))[0]) == 24
    for model, wanted in ((encoder, 8), (matryoshka, 9), (matryoshka, 25)):
        with pytest.raises(RequestError) as refusal:
            ask(model, embedding_work, input="fox", dimensions=wanted)
        assert refusal.value.param == "dimensions"


def test_a_qwen3_embedder_may_be_cut(tmp_path: Path) -> None:
    write_qwen3(tmp_path, "embed")
    add_modules(tmp_path, "lasttoken")
    qwen3 = load(tmp_path, "embedding", None, lambda _: None)
    with pytest.raises(RequestError, match="32 to 24"):  # the tiny one is shorter than the shortest real one
        ask(qwen3, embedding_work, input="fox", dimensions=8)


def test_a_long_text_is_refused_or_cut_and_says_so(encoder: Encoder) -> None:
    with pytest.raises(RequestError) as refusal:
        ask(encoder, embedding_work, input=["a", LONG])
    assert (refusal.value.param, refusal.value.code) == ("input[1]", "context_length_exceeded")
    answer = embedding(encoder, input=["a", LONG], truncate=True)
    assert [entry.get("truncated", False) for entry in answer["data"]] == [False, True]
    tokens = encoder.reading.texts.tokenizer.encode(LONG).ids
    (expected,) = vectors(embedding(encoder, input=[*tokens[: POSITIONS - 1], tokens[-1]]))
    np.testing.assert_allclose(vectors(answer)[1], expected, atol=1e-6)


def test_a_ranking_is_sorted_cut_and_returns_documents_as_they_came(cross_encoder: Encoder) -> None:
    documents = ["a fox", {"text": "a dog", "id": 7}, "France"]
    every = ranking(cross_encoder, "fox", documents, return_documents=True)
    scores = [result["relevance_score"] for result in every]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in every) == [0, 1, 2]
    for result in every:
        original = documents[result["index"]]
        assert result["document"] == ({"text": original} if isinstance(original, str) else original)
    assert ranking(cross_encoder, "fox", documents, top_n=2, return_documents=True) == every[:2]
    assert "document" not in ranking(cross_encoder, "fox", documents)[0]


def test_long_documents_of_a_ranking_are_cut_and_marked_unless_that_is_refused(cross_encoder: Encoder) -> None:
    results = ranking(cross_encoder, "fox", ["a", LONG])
    assert {result["index"] for result in results if result.get("truncated")} == {1}
    with pytest.raises(RequestError) as refusal:
        ask(cross_encoder, rerank_work, query="fox", documents=["a", LONG], truncate=False)
    assert (refusal.value.param, refusal.value.code) == ("documents[1]", "context_length_exceeded")


@pytest.mark.parametrize(("query", "document"), [("fox", LONG), (LONG, "dog"), (LONG, LONG), ("a " * 31, "b " * 31)])
def test_a_pair_that_is_too_long_loses_tokens_of_its_longer_text(
    cross_encoder: Encoder, query: str, document: str
) -> None:
    texts: Texts = cross_encoder.reading.texts
    (row,) = texts.pairs(query, [document], ["documents[0]"], truncate=True)
    # The library itself is the oracle: it cuts pairs by the same rule.
    tokenizer = type(texts.tokenizer).from_str(texts.tokenizer.to_str())
    tokenizer.enable_truncation(POSITIONS, strategy="longest_first")
    assert list(row.tokens) == tokenizer.encode(query, document).ids
    assert len(row.tokens) <= POSITIONS


@pytest.mark.parametrize("text", ["a" * 5000, " " * 5000 + "a", "\n" * 3000, "é" * 3000, "a" + " " * 100_000 + "b"])
def test_reading_the_head_of_a_long_text_first_changes_nothing(encoder: Encoder, text: str) -> None:
    texts = encoder.reading.texts
    whole = texts.tokenizer.encode(text, add_special_tokens=False).ids
    (read,) = texts.read([text], 20)
    assert read.ids[:20] == whole[:20]
    assert (len(read.ids) > 20) == (len(whole) > 20)


def test_an_instruction_is_refused_where_the_model_takes_none(cross_encoder: Encoder) -> None:
    with pytest.raises(RequestError) as refusal:
        ranking(cross_encoder, "fox", ["a"], instruction="find")
    assert refusal.value.param == "instruction"


EMBEDDING: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": {}}, "input"),
    ({"input": 5}, "input"),
    ({"input": True}, "input"),
    ({"input": [""]}, "input[0]"),
    ({"input": ["a", None]}, "input[1]"),
    ({"input": ["a", 5]}, "input[1]"),
    ({"input": [["a"]]}, "input[0]"),
    ({"input": [[]]}, "input[0]"),
    ({"input": [[1], "a"]}, "input"),
    ({"input": [1, "a"]}, "input"),
    ({"input": [1, -1]}, "input"),
    ({"input": [1, True]}, "input"),
    ({"input": [1.5]}, "input[0]"),
    ({"input": [[1 << 40]]}, "input[0]"),
    ({"input": [1 << 40]}, "input"),
    ({"input": "a\ud800"}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "encoding_format": []}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": "24"}, "dimensions"),
    ({"input": "a", "dimensions": 1 << 70}, "dimensions"),
    ({"input": "a", "dimensions": 12}, "dimensions"),
    ({"input": "a", "truncate": "END"}, "truncate"),
    ({"input": "a", "prompt_name": 5}, "prompt_name"),
    ({"input": "a", "prompt_name": "nothing"}, "prompt_name"),
    ({"input": "a", "model": 5}, "model"),
    ({"input": "a", "model": "other"}, "model"),
]
RERANK: list[tuple[dict[str, Any], str]] = [
    ({}, "query"),
    ({"query": ""}, "query"),
    ({"query": 5, "documents": ["a"]}, "query"),
    ({"query": "\udc00", "documents": ["a"]}, "query"),
    ({"query": ["a"], "documents": ["a"]}, "query"),
    ({"query": "a"}, "documents"),
    ({"query": "a", "documents": []}, "documents"),
    ({"query": "a", "documents": "b"}, "documents"),
    ({"query": "a", "documents": {"text": "b"}}, "documents"),
    ({"query": "a", "documents": [None]}, "documents[0]"),
    ({"query": "a", "documents": ["b", 5]}, "documents[1]"),
    ({"query": "a", "documents": [{"title": "b"}]}, "documents[0]"),
    ({"query": "a", "documents": [{"text": None}]}, "documents[0]"),
    ({"query": "a", "documents": ["\ud83d"]}, "documents[0]"),
    ({"query": "a", "documents": ["b"] * 2049}, "documents"),
    ({"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ({"query": "a", "documents": ["b"], "top_n": "1"}, "top_n"),
    ({"query": "a", "documents": ["b"], "top_n": 1.5}, "top_n"),
    ({"query": "a", "documents": ["b"], "return_documents": "yes"}, "return_documents"),
    ({"query": "a", "documents": ["b"], "truncate": 1}, "truncate"),
    ({"query": "a", "documents": ["b"], "instruction": {}}, "instruction"),
    ({"query": "a", "documents": ["b"], "instruction": "x" * 5000}, "instruction"),
    ({"query": "a", "documents": ["b"], "model": []}, "model"),
]


@pytest.mark.parametrize(("body", "param"), EMBEDDING)
def test_a_wrong_request_for_vectors_names_the_parameter(encoder: Encoder, body: dict[str, Any], param: str) -> None:
    assert refused(lambda: embedding_work(parse_embedding(body, "tiny"), encoder.reading, "tiny")) == param


@pytest.mark.parametrize(("body", "param"), RERANK)
def test_a_wrong_request_for_a_ranking_names_the_parameter(
    cross_encoder: Encoder, body: dict[str, Any], param: str
) -> None:
    assert refused(lambda: rerank_work(parse_rerank(body, "tiny"), cross_encoder.reading, "tiny")) == param


def refused(act: Callable[[], object]) -> str | None:
    with pytest.raises(RequestError) as refusal:
        act()
    assert 400 <= refusal.value.status < 500
    return refusal.value.param
