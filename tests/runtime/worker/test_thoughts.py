"""What a model thinks is told apart from what it says, however the text is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.answer import Piece
from runtime.worker.choices import Stream, Whole
from runtime.worker.openai import Envelope, Usage
from runtime.worker.tools.reading import Call
from runtime.worker.tools.stream import CallReader
from runtime.worker.tools.thoughts import ThoughtReader


def read(*pieces: str, is_open: bool = False) -> tuple[str, str]:
    """Return the thoughts and the answer of a text in pieces."""
    reader = ThoughtReader("<think>", "</think>", is_open)
    told = [*(reader.push(piece) for piece in pieces), reader.finish()]
    return "".join(thoughts for thoughts, _ in told), "".join(said for _, said in told)


@pytest.mark.parametrize(
    ("text", "is_open", "told"),
    [
        ("<think>hm</think>yes", False, ("hm", "yes")),
        ("\n<think>\nhm\n</think>\n\nyes\n", False, ("\nhm\n", "yes\n")),
        ("hm\n</think>\n\nyes", True, ("hm\n", "yes")),
        ("<think>hm</think>yes", True, ("hm", "yes")),
        ("yes", False, ("", "yes")),
        (" yes <think>no</think>", False, ("", " yes <think>no</think>")),
        ("</think>yes", True, ("", "yes")),
        ("<think></think>yes", False, ("", "yes")),
        ("<think>cut </thi", False, ("cut </thi", "")),
        ("cut off", True, ("cut off", "")),
        ("<thi", False, ("", "<thi")),
        ("<thi", True, ("<thi", "")),
        ("<b>bold</b>", False, ("", "<b>bold</b>")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
        ("", False, ("", "")),
    ],
)
def test_thoughts_stand_between_the_marks_at_the_beginning(text: str, is_open: bool, told: tuple[str, str]) -> None:
    assert read(text, is_open=is_open) == told
    assert read(*text, is_open=is_open) == told


def test_what_is_certain_is_told_at_once() -> None:
    reader = ThoughtReader("<think>", "</think>", is_open=False)
    assert reader.push("<think>a b </") == ("a b ", "")
    assert reader.push("b></think>") == ("</b>", "")
    assert reader.push("\n\n") == ("", "")
    assert reader.push("yes ") == ("", "yes ")


@settings(max_examples=50)
@given(st.text("<>/think \na", max_size=30), st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_however_the_text_is_cut_the_same_is_told(text: str, cuts: list[int], is_open: bool) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert read(*(text[a:b] for a, b in pairwise(places)), is_open=is_open) == read(text, is_open=is_open)


def readers() -> ThoughtReader:
    return ThoughtReader("<think>", "</think>", is_open=True)


ENVELOPE = Envelope("chat", "chatcmpl-1", 1, "m")
PIECES = [Piece(0, "hm</thi", None), Piece(0, "nk>\n\nyes <call>", None), Piece(0, "{}</call>", "stop")]


def call_reader() -> CallReader:
    return CallReader("<call>", "</call>", lambda _: [Call("f", "{}")], lambda: "call_1")


@pytest.mark.parametrize("reader", [None, call_reader])
def test_thoughts_have_a_place_of_their_own_in_answers(reader: Callable[[], CallReader] | None) -> None:
    whole = Whole(ENVELOPE, 1, has_logprobs=False, new_reader=reader, new_thoughts=readers)
    whole.add(PIECES)
    (choice,) = whole.body(Usage(1, 2))["choices"]
    said = "yes <call>{}</call>" if reader is None else "yes"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", said)
    assert choice["finish_reason"] == ("stop" if reader is None else "tool_calls")
    stream = Stream(ENVELOPE, 1, has_logprobs=False, include_usage=False, new_reader=reader, new_thoughts=readers)
    events = b"".join(stream.add([piece]) for piece in PIECES).split(b"\n\n")
    chunks = [json.loads(event[6:])["choices"][0] for event in events if event.startswith(b"data: {")]
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == said
    assert deltas[0] == {"reasoning_content": "hm"}
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]


def test_a_model_that_does_not_think_says_nothing_of_thoughts() -> None:
    whole = Whole(ENVELOPE, 1, has_logprobs=False)
    whole.add([Piece(0, "<think>no", "stop")])
    assert whole.body(Usage(1, 2))["choices"][0]["message"] == {"role": "assistant", "content": "<think>no"}
