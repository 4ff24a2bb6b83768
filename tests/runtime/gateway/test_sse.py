"""Whole events, the commit point, and endings, however the network splits the bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway import sse
from tests.fakes.upstream import DONE, FINISH, ROLE, chunk_document, event, word

COMMENT = b": still there\n\n"
USAGE = event({"choices": [], "usage": {"completion_tokens": 12}})
ERROR = event({"error": {"message": "boom", "type": "server_error"}})
MALFORMED = b"data: {oops\n\n"
TOOL = event(chunk_document({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}))
TEXT = event({"choices": [{"index": 0, "text": "hi"}]})
THINKING = event(chunk_document({"reasoning_content": "hm"}))
CRLF = word(1).replace(b"\n", b"\r\n")
UNICODE = event(chunk_document({"content": "größer 🚀"}))
# Text of the model that looks like the protocol is escaped inside JSON.
TRICKY = event(chunk_document({"content": '\n\ndata: {"error": 1}\n\n"finish_reason": "stop"\n\ndata: [DONE]'}))


@pytest.mark.parametrize(
    ("event", "sign"),
    [
        (ROLE, "nothing"),
        (COMMENT, "nothing"),
        (USAGE, "nothing"),
        (MALFORMED, "malformed"),
        (b"event: ping\n\n", "nothing"),
        (b"data: [1]\n\n", "malformed"),
        (b'data: {"choices": null}\n\n', "nothing"),
        (b'data: {"choices": [1, {"delta": 3}]}\n\n', "nothing"),
        (word(0), "content"),
        (CRLF, "content"),
        (TEXT, "content"),
        (TOOL, "content"),
        (THINKING, "content"),
        (FINISH, "content"),
        (DONE, "content"),
        (b"data:[DONE]\n\n", "content"),
    ],
)
def test_what_counts_as_content(event: bytes, sign: str) -> None:
    assert sse.read_event(event) == sign


def test_an_error_event_is_recognised_in_every_shape() -> None:
    assert sse.read_event(ERROR) == sse.StreamError("server_error", "boom")
    assert sse.read_event(b'data: {"error": "plain"}\n\n') == sse.StreamError("", "plain")
    assert sse.read_event(b'data: {"error": null, "choices": []}\n\n') == "nothing"


EVENTS = [ROLE, COMMENT, USAGE, ERROR, MALFORMED, TOOL, TEXT, CRLF, UNICODE, TRICKY, FINISH, DONE]
STREAMS = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=8)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges) if end > start]


def decision(pieces: list[bytes]) -> tuple[bytes | None, bool]:
    """Return the bytes before and with the first content event, and whether an error came first."""
    commit, framer, after = sse.Commit(), None, b""
    for piece in pieces:
        if framer is not None:
            after += framer.feed(piece)
            continue
        found = commit.feed(piece)
        if isinstance(found, sse.StreamError):
            return None, True
        if found is not None:
            after, framer = found, commit.framer()
    return (after + framer.rest() if framer is not None else None), False


@given(STREAMS, st.lists(st.integers(0, 5000), max_size=12))
def test_any_split_gives_the_same_decision_and_the_same_bytes(events: list[bytes], places: list[int]) -> None:
    stream = b"".join(events)
    kinds = [sse.read_event(one) for one in events]
    first_content = next((i for i, kind in enumerate(kinds) if kind == "content"), None)
    first_error = next((i for i, kind in enumerate(kinds) if isinstance(kind, sse.StreamError)), None)
    is_error = first_error is not None and (first_content is None or first_error < first_content)
    passed, is_refused = decision(cut(stream, places))
    assert is_refused == is_error
    if not is_error:
        assert passed == (stream if first_content is not None else None)


@given(STREAMS, st.lists(st.integers(0, 5000), max_size=12))
def test_only_whole_events_are_passed_on(events: list[bytes], places: list[int]) -> None:
    framer, stream, passed = sse.Framer(), b"".join(events), b""
    ends = {len(b"".join(events[:count])) for count in range(len(events) + 1)}
    for piece in cut(stream, places):
        passed += framer.feed(piece)
        assert len(passed) in ends
    assert passed == stream
    assert framer.rest() == b""


def test_an_endless_event_is_refused() -> None:
    framer = sse.Framer()
    with pytest.raises(sse.EventTooLargeError):
        for _ in range(6):
            framer.feed(b"x" * (1024 * 1024))
    commit = sse.Commit()
    with pytest.raises(sse.EventTooLargeError):
        for _ in range(200_000):
            commit.feed(COMMENT * 2)


@given(st.lists(st.sampled_from([word(1), TRICKY, UNICODE, USAGE, COMMENT]), max_size=30))
def test_only_a_real_end_counts_as_one(events: list[bytes]) -> None:
    tail = sse.Tail()
    for one in events:
        tail.feed(one)
    assert not tail.is_finished()
    tail.feed(FINISH)
    assert tail.is_finished() and not tail.is_done()
    tail.feed(USAGE)
    tail.feed(DONE)
    assert tail.is_done()
    assert tail.completion_tokens() == 12


def test_an_error_behind_content_is_cut_off() -> None:
    before, error = sse.cut_error(word(1) + TRICKY + ERROR + word(2))
    assert before == word(1) + TRICKY
    assert error == sse.StreamError("server_error", "boom")
    assert sse.cut_error(TRICKY + FINISH) == (TRICKY + FINISH, None)
