"""What streams say of their tokens, however their bytes were split, and how tokens are estimated."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.usage import TOKENS_A_MESSAGE, TOKENS_AN_IMAGE, StreamUsage, completed, prompt_tokens, tokens_of
from tests.fakes.upstream import DONE, FINISH, ROLE, chunk_document, event, word

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
WANTED = {**ASKED, "stream_options": {"include_usage": True}}
USAGE = event({**chunk_document({}), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
EMPTY = event({**chunk_document({}), "choices": [], "usage": {}})
NULLS = event({**chunk_document({"content": "[]"}), "usage": None})
TRICKY = event(chunk_document({"content": '"choices": [], "usage": {"a": 1}\n\ndata: [DONE]'}))
RESTART = sse.restart_event("b", 2)
PIECES = st.lists(st.sampled_from([word(0), word(1), b": still there\n\n", NULLS, TRICKY, RESTART]), max_size=8)


def told(asked: dict[str, Any], whole: bytes, cuts: list[int]) -> bytes:
    """Return what a client gets of a stream that comes in these pieces."""
    framer, usage = sse.Framer(), StreamUsage(asked)
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    said = b"".join(usage.feed(framer.feed(whole[start:stop])) for start, stop in pairwise(places))
    return said + (b"" if sse.DONE in whole else usage.chunk())


@given(PIECES, st.sampled_from([b"", USAGE, EMPTY]), st.booleans(), st.lists(st.integers(0, 2500), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_split_of_the_bytes_gives_the_same_events(
    pieces: list[bytes], usage: bytes, is_done: bool, cuts: list[int]
) -> None:
    content = b"".join([ROLE, *pieces, FINISH])
    whole = content + usage + (DONE if is_done else b"")
    assert told(ASKED, whole, cuts) == content + (DONE if is_done else b""), "nobody asked"
    said = told(WANTED, whole, cuts)
    assert said.startswith(content) and said.endswith(DONE) is is_done
    (last,) = [json.loads(sse.event_data(each)) for each in sse.split_events(said[len(content) :]) if each != DONE]
    assert last["choices"] == [] and last["id"] == "chatcmpl-1"
    assert last["usage"]["prompt_tokens"] > 0 and last["usage"].get("estimated") is (None if usage == USAGE else True)
    in_one = told(WANTED, whole, [])
    assert said == in_one or (usage == EMPTY and last["usage"]["estimated"])


def last_usage(*pieces: bytes) -> dict[str, Any]:
    """Return the usage that a client is told of a stream without a chunk of its own for it."""
    in_one, singly = told(WANTED, b"".join(pieces), []), StreamUsage(WANTED)
    assert in_one == b"".join(singly.feed(piece) for piece in pieces), "however the stream came"
    *_, last, done = sse.split_events(in_one)
    document = json.loads(sse.event_data(last))
    assert done == DONE and document["choices"] == []
    usage: dict[str, Any] = document["usage"]
    return usage


EXACT = {"prompt_tokens": 1234, "completion_tokens": 567, "total_tokens": 1801}


def test_a_usage_in_a_chunk_with_choices_is_told_as_it_is() -> None:
    ended = event({**chunk_document({}, "stop"), "usage": EXACT})
    assert last_usage(ROLE, word(0), ended, DONE) == EXACT
    assert last_usage(ROLE, word(0), ended, NULLS, DONE) == EXACT, "null says nothing"
    counted = [event({**chunk_document({"content": "x"}), "usage": {**EXACT, "completion_tokens": n}}) for n in (1, 2)]
    assert last_usage(ROLE, *counted, ended, DONE) == EXACT, "the last one counts"


def test_a_usage_that_came_before_the_answer_is_not_all_of_it() -> None:
    begun = event({**chunk_document({"role": "assistant"}), "usage": {**EXACT, "completion_tokens": 1}})
    usage = last_usage(begun, *(word(number) for number in range(20)), FINISH, DONE)
    assert usage["prompt_tokens"] == 1234 and usage["estimated"] is True
    assert usage["completion_tokens"] == 20 and usage["total_tokens"] == 1254


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}]}, TOKENS_A_MESSAGE + 10),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, "yyyy"]}]},
         TOKENS_A_MESSAGE + 11),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         TOKENS_A_MESSAGE + TOKENS_AN_IMAGE),
        ({"messages": [{"role": "assistant", "content": None}]}, TOKENS_A_MESSAGE),
        ({"prompt": "x" * 40}, 10),
        ({"prompt": ["x" * 40, "y" * 40]}, 20),
        ({"prompt": [1, 2, 3]}, 3),
        ({"input": [[1, 2], [3]]}, 3),
        ({}, 1),
    ],
)  # fmt: skip
def test_a_prompt_is_estimated_by_its_length(document: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(document) == tokens


def test_scripts_of_several_bytes_have_more_tokens_a_character() -> None:
    assert tokens_of("日本語の文章です。") > tokens_of("japanese.")
    assert tokens_of("") == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"choices": 3}', b'{"choices": [1]}', b'{"error": {}}'])
def test_what_is_no_answer_is_left_alone(raw: bytes) -> None:
    assert completed(raw, {}) == (raw, 0)


def test_an_empty_answer_has_no_tokens() -> None:
    document = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}
    raw = json.dumps(document).encode()
    assert completed(raw, {}) == (raw, 0)
