"""Parts of a request hold all of it, in order and within the limits, and their answers make one."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.adapters import ollama, ranking, splitting, tei, vectors
from runtime.gateway.attempt import Ask, BadAnswerError
from runtime.gateway.routing.table import Route

ROUTE = Route("embedding", (), (), 1, 1.0)


def embedding(given: Any, **more: Any) -> Ask:
    body = vectors.parse_embeddings(json.dumps({"model": "m", "input": given, **more}).encode())
    return Ask(ROUTE, vectors.PATH, body, "1", reading=vectors.reading_of(body, None))


def reranking(documents: list[Any], **more: Any) -> Ask:
    document = {"model": "m", "query": "q", "documents": documents, **more}
    body, reading = ranking.parse_rerank(json.dumps(document).encode())
    return Ask(ROUTE, ranking.PATH, body, "1", reading=reading)


TEXTS = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=40)
TOKENS = st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1)


@given(TEXTS | TOKENS, st.integers(1, 10), st.integers(10, 400))
def test_parts_hold_every_text_once_in_order_within_the_limits(texts: list[Any], most: int, largest: int) -> None:
    for ask, key in ((embedding(texts), "input"), (reranking([str(text) for text in texts], top_n=1), "documents")):
        parts = splitting.split(ask, most, largest)
        assert [text for part in parts for text in part.body.document[key]] == ask.body.document[key]
        if len(parts) == 1:
            assert parts[0] is ask
            continue
        for part in parts:
            chunk = part.body.document[key]
            assert 1 <= len(chunk) <= most
            assert (
                len(chunk) == 1 or sum(len(json.dumps(text, ensure_ascii=False).encode()) for text in chunk) <= largest
            )
            assert "top_n" not in part.body.document


@pytest.mark.parametrize("given", ["one text " * 1000, [1, 2, 3] * 1000, [[1, 2, 3] * 1000]])
def test_one_text_is_one_part_however_long_it_is(given: Any) -> None:
    ask = embedding(given)
    assert splitting.split(ask, 1, 10) == [ask]


def test_answers_of_the_parts_become_one_with_their_tokens_summed() -> None:
    ask = embedding(["a", "b", "c"])
    parts = splitting.split(ask, 2, 1000)
    answers = [vectors.written([b"[1,2]", b"[3,4]"], "m", 5), vectors.written([b"[5,6]"], "m", 2)]
    joined = json.loads(splitting.join(ask, parts, answers))
    assert [(item["index"], item["embedding"]) for item in joined["data"]] == [(0, [1, 2]), (1, [3, 4]), (2, [5, 6])]
    assert joined["usage"] == {"prompt_tokens": 7, "total_tokens": 7} and joined["model"] == "m"
    with pytest.raises(BadAnswerError, match="different lengths"):
        splitting.join(ask, parts, [answers[0], vectors.written([b"[5]"], "m", 2)])


def test_scores_of_the_parts_are_one_order() -> None:
    ask = reranking(["a", "b", "c"], top_n=2)
    parts = splitting.split(ask, 2, 1000)
    first = {"results": [{"index": 1, "relevance_score": 0.2}, {"index": 0, "relevance_score": 0.1}],
             "usage": {"total_tokens": 3, "prompt_tokens": 2}}  # fmt: skip
    second = {"results": [{"index": 0, "relevance_score": 0.3}], "usage": {"total_tokens": 4}}
    joined = json.loads(splitting.join(ask, parts, [json.dumps(each).encode() for each in (first, second)]))
    assert [(each["index"], each["relevance_score"]) for each in joined["results"]] == [(2, 0.3), (1, 0.2)]
    assert joined["usage"] == {"total_tokens": 7, "prompt_tokens": 2}


@pytest.mark.parametrize(
    "shape",
    [
        [{"index": 0, "score": 0.5}, {"index": 1, "score": 0.9}],
        {"data": [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.9}], "object": "rerank"},
        {"results": [{"index": 1, "relevance_score": 0.9, "document": None}, {"index": 0, "score": 0.5}]},
    ],
)
def test_scores_are_found_in_every_shape_that_servers_give_them(shape: Any) -> None:
    reading = reranking(["a", "b"]).reading
    assert reading is not None
    found = json.loads(reading.read(json.dumps(shape).encode()))["results"]
    assert [(each["index"], each["relevance_score"]) for each in found] == [(1, 0.9), (0, 0.5)]


NOISE = st.binary(max_size=40) | st.text(alphabet='[]{}",:0123456789.embdings ', max_size=80).map(str.encode)


@given(NOISE, st.booleans())
def test_no_bytes_of_a_server_escape_as_another_error(noise: bytes, is_base64: bool) -> None:
    wanted = vectors.VectorReading(1, None, is_base64)
    readings: list[Any] = [
        tei.EmbedReading(wanted, "m"),
        ollama.EmbedReading(wanted, "m"),
        tei.RankReading(ranking.RankReading("m", ["a"], 1), "m"),
    ]
    for reading in readings:
        for raw in (noise, b'{"embeddings":[[' + noise, b"[[" + noise + b"]]", b"[" + noise + b"]"):
            with contextlib.suppress(BadAnswerError):
                assert reading.read(raw, {b"x-compute-tokens": noise}).startswith(b'{"object"')
