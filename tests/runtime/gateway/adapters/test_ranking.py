"""Rankings come back sorted, cut and complete, whatever the server behind them does of that itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.adapters.ranking import MOST_DOCUMENTS, RankReading, parse_rerank
from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.errors import ApiError

TEXTS = ["zero", "one", "two"]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "reranking", "query": "q", "documents": TEXTS, **fields}).encode()


def results(*pairs: tuple[Any, Any], **more: Any) -> bytes:
    listed = [{"index": index, "relevance_score": score} for index, score in pairs]
    return json.dumps({"results": listed, **more}).encode()


def read(raw: bytes, **fields: Any) -> dict[str, Any]:
    _, reading = parse_rerank(body(**fields))
    document: dict[str, Any] = json.loads(reading.read(raw))
    return document


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "one"}, "documents"),
        ({"documents": ["a", 1]}, "documents[1]"),
        ({"documents": [{"title": "x"}]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"stream": True}, "stream"),
        ({"extra_headers": {}}, "extra_headers"),
    ],
)
def test_a_wrong_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_rerank(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_endpoints_get_texts_and_everything_else_as_it_came() -> None:
    plain, _ = parse_rerank(body(top_n=2, max_tokens_per_doc=9))
    assert plain.raw == body(top_n=2, max_tokens_per_doc=9)
    sent, _ = parse_rerank(body(documents=[{"text": "a", "title": "x"}, "b"], return_documents=True, top_n=1))
    assert json.loads(sent.raw) == {"model": "reranking", "query": "q", "documents": ["a", "b"], "top_n": 1}


def test_results_are_sorted_best_first_and_cut() -> None:
    raw = results((0, 0.1), (1, 0.9), (2, -3), usage={"total_tokens": 5})
    assert read(raw) == {
        "results": [
            {"index": 1, "relevance_score": 0.9},
            {"index": 0, "relevance_score": 0.1},
            {"index": 2, "relevance_score": -3.0},
        ],
        "usage": {"total_tokens": 5},
    }
    assert [result["index"] for result in read(raw, top_n=2)["results"]] == [1, 0]
    assert [result["index"] for result in read(raw, top_n=9)["results"]] == [1, 0, 2]


def test_documents_come_back_where_they_are_wanted() -> None:
    raw = json.dumps({"results": [{"index": 1, "score": 0.5, "text": "theirs", "truncated": True}]}).encode()
    (result,) = read(raw, top_n=1, return_documents=True)["results"]
    assert result == {"index": 1, "relevance_score": 0.5, "truncated": True, "document": {"text": "one"}}
    assert "document" not in read(raw, top_n=1)["results"][0]


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"[]",
        b'{"results": 3}',
        b'{"results": [{"index": 0}]}',
        results((0, 1), (1, 1)),
        results((0, 1), (1, 1), (3, 1)),
        results((0, 1), (1, 1), (1, 2)),
        results((0, 1), (1, 1), (-1, 2)),
        results((0, 1), (1, 1), (2, None)),
        results((0, 1), (1, 1), (2, float("nan"))),
        results((0, 1), (1, 1), (2, True)),
        results((0, 1), (1, 1), ([], 1)),
        b'""',
        b"7",
        b"null",
    ],
)
def test_what_is_no_ranking_of_the_documents_is_a_bad_answer(raw: bytes) -> None:
    with pytest.raises(BadAnswerError):
        read(raw)


@given(st.binary(max_size=60))
def test_no_bytes_escape_as_another_error(noise: bytes) -> None:
    for raw in (noise, b'{"results": [' + noise, b'{"results": [{"index": 0, "relevance_score": ' + noise):
        try:
            RankReading("m", ["a"], 1).read(raw)
        except BadAnswerError:
            continue


@given(st.permutations(range(5)), st.integers(1, 7))
def test_the_best_are_kept_whatever_the_order(scores: list[int], top_n: int) -> None:
    raw = results(*enumerate(scores))
    found = RankReading("m", ["d"] * 5, min(top_n, 5)).read(raw)
    best = sorted(range(5), key=lambda index: -scores[index])[:top_n]
    assert [result["index"] for result in json.loads(found)["results"]] == best


def test_a_skipped_task_gives_the_documents_in_their_order_and_says_so() -> None:
    _, reading = parse_rerank(body(top_n=2, return_documents=True))
    assert json.loads(reading.skipped()) == {
        "object": "list",
        "model": "reranking",
        "results": [
            {"index": 0, "relevance_score": 0.0, "ranked": False, "document": {"text": "zero"}},
            {"index": 1, "relevance_score": 0.0, "ranked": False, "document": {"text": "one"}},
        ],
    }


def test_a_request_has_no_more_documents_than_may_be_asked_for_one_by_one() -> None:
    assert len(parse_rerank(body(documents=["a"] * MOST_DOCUMENTS))[1].documents) == MOST_DOCUMENTS
    with pytest.raises(ApiError) as error:
        parse_rerank(body(documents=["a"] * (MOST_DOCUMENTS + 1)))
    assert (error.value.status, error.value.param) == (400, "documents")
