"""What all translations read: the events of OpenAI's streams, each as JSON or by what stands around its text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.protocols.reading import MOST_FRAMES, THINKING, Event, Reader, Texts
from runtime.gateway.sse import StreamError
from tests.fakes.upstream import DONE, chunk_document, event

END = chunk_document({}, "stop")


def read(*pieces: bytes) -> list[Event]:
    reader = Reader()
    return [said for piece in pieces for said in reader.read(piece)]


def flat(said: Iterable[Event]) -> list[object]:
    """Return events with every text by itself, however it came."""
    made: list[object] = []
    for each in said:
        if isinstance(each, Texts):
            made += [(each.is_thinking, text) for text in each.texts]
        elif isinstance(each, dict) and (text := only_text(each)) is not None:
            made += [text] if text[1] else []
        else:
            made.append(each)
    return made


def only_text(document: dict[str, Any]) -> tuple[bool, str] | None:
    """Return whether a chunk's text is thinking, and the text; None where the chunk is no more than one."""
    try:
        ((name, text),) = document["choices"][0]["delta"].items()
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    is_known = name in ("content", *THINKING) and isinstance(text, str)
    says_more = document.keys() & {"usage", "timings"} or document["choices"][0].get("finish_reason")
    return (name in THINKING, text) if is_known and not says_more else None


def test_events_are_read_for_what_they_say() -> None:
    chunk = chunk_document({"role": "assistant", "content": "größer\n\ndata: [DONE]\n\n", "refusal": "no"})
    told = [
        *(b": keep-alive\n\n", event(chunk), event(chunk).replace(b"\n", b"\r\n"), b"data:" + event(chunk)[6:]),
        *(b"data: {oops\n\n", b"data: [1]\n\n", b"event: ping\n\n", b"data: \n\n", b"id: 3\n" + event(chunk)),
        *(event({"error": {"message": "boom", "type": "t"}}), event({"error": "plain"}), DONE, b"data:[DONE]\n\n"),
    ]
    errors = [StreamError("t", "boom"), StreamError("", "plain")]
    assert read(b"".join(told)) == ["keep-alive", chunk, chunk, chunk, chunk, *errors, "done", "done"]


def test_an_error_of_null_is_none() -> None:
    assert read(event({"error": None, "choices": []})) == [{"error": None, "choices": []}]


def test_texts_that_arrive_together_are_read_together() -> None:
    words = [event(chunk_document({"content": f"w{number}"})) for number in range(4)]
    together = read(b"".join([*words, event(END), DONE]))
    assert together == [chunk_document({"content": "w0"}), Texts(["w1", "w2", "w3"], is_thinking=False), END, "done"]
    apart = read(*words)
    assert apart[1:] == [Texts([f"w{number}"], is_thinking=False) for number in (1, 2, 3)]


@pytest.mark.parametrize("name", THINKING)
def test_thinking_is_told_from_text(name: str) -> None:
    thoughts = [event(chunk_document({name: word})) for word in "ab"]
    words = [event(chunk_document({"content": word})) for word in "cd"]
    said = read(b"".join([*thoughts, *words]))
    assert said[1::2] == [Texts(["b"], is_thinking=True), Texts(["d"], is_thinking=False)]


FIRST = event(chunk_document({"content": "word"}))


@pytest.mark.parametrize(
    "odd",
    [FIRST.replace(b'"word"', value) for value in (
        b'5', b'null', b'["a"]', b'{"a": "b"}', b'"a","b"', b'"a"],["b"', b'', b'"', b'"a" "b"', b'"a', b'oops',
        b'"a"}, "finish_reason": "stop", "more": {"content": "b"', b'"\xff"', b'"a\\"', b'"a", "content": "b"',
        b'"a", "refusal": "b"')],
)  # fmt: skip
def test_what_only_looks_like_a_text_is_read_as_what_it_is(odd: bytes) -> None:
    alone = flat(read(odd))
    assert flat(read(FIRST, odd, FIRST)) == [(False, "word"), *alone, (False, "word")]
    assert flat(read(FIRST + odd + FIRST)) == [(False, "word"), *alone, (False, "word")]


@pytest.mark.parametrize(
    "more",
    [{"usage": {"completion_tokens": 1}}, {"timings": {"prompt_ms": 1}}, {"choices": []},
     {"choices": [{"index": 1, "delta": {"content": "x"}}]},
     {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": []}}]},
     {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "length"}]},
     {"choices": [{"index": 0, "delta": {"content": "x", "reasoning": "y"}}]},
     {"choices": [{"index": 0, "delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]}],
)  # fmt: skip
def test_what_says_more_than_a_text_comes_as_a_whole(more: dict[str, Any]) -> None:
    document = chunk_document({"content": "x"}) | more
    assert read(event(document) * 3) == [document] * 3


def test_a_text_of_another_place_is_not_taken_for_the_answers() -> None:
    document = {"debug": {"content": "same"}, **chunk_document({"content": "same"})}
    other = {"debug": {"content": "else"}, **chunk_document({"content": "same"})}
    assert flat(read(event(document) + event(other) * 2)) == [(False, "same")] * 3


def test_what_stands_around_texts_may_change_on_the_way() -> None:
    seconds = [1, 1, 1, 2, 2, 2, 2, 3, 3]
    chunks = [chunk_document({"content": f"w{place}"}) | {"created": second} for place, second in enumerate(seconds)]
    behind = [{key: chunk[key] for key in ("choices", "created", "id", "model")} for chunk in chunks]
    for each in (chunks, behind):
        together = [len(said.texts) for said in read(b"".join(map(event, each))) if isinstance(said, Texts)]
        assert together == [2, 3, 1]


def test_a_stream_whose_events_are_all_different_is_read_as_well() -> None:
    chunks = [chunk_document({"content": f"w{number}"}) | {"created": number} for number in range(3 * MOST_FRAMES)]
    assert read(b"".join(map(event, chunks))) == chunks


def spelt(chunk: dict[str, Any], is_ascii: bool, separators: tuple[str, str], ends: bytes) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=is_ascii, separators=separators).encode() + ends * 2


def oracle(events: Sequence[bytes]) -> list[object]:
    """Read each event by itself, as JSON."""
    return flat(json.loads(each[6:]) for each in events)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(['"', "\\", '"}}\n\n', "\0"])
deltas = st.one_of(
    st.builds(lambda key, text: {key: text}, st.sampled_from(["content", "content", *THINKING]), texts),
    st.builds(lambda text: {"role": "assistant", "content": text, "refusal": "x"}, texts),
    st.just({"tool_calls": [{"index": 0, "function": {"arguments": '{"content": "x"}'}}]}),
)
spellings = st.tuples(st.booleans(), st.sampled_from([(", ", ": "), (",", ":")]), st.sampled_from([b"\n", b"\r\n"]))


@settings(max_examples=80, deadline=None)
@given(st.lists(deltas, max_size=12), spellings, st.lists(st.integers(0, 3000), max_size=8))
def test_however_an_engine_writes_and_the_network_splits_texts_are_read_as_json_has_them(
    said: list[dict[str, Any]], spelling: tuple[bool, tuple[str, str], bytes], cuts: list[int]
) -> None:
    events = [spelt(chunk_document(delta), *spelling) for delta in said]
    raw = b"".join(events)
    framer, places = sse.Framer(), sorted({0, len(raw), *(min(cut, len(raw)) for cut in cuts)})
    pieces = [framer.feed(raw[start:end]) for start, end in itertools.pairwise(places)]
    assert flat(read(*pieces)) == oracle(events)
