"""The shapes of answers, for any text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.openai import DONE, Envelope, EventStream, Kind, Usage, encoded

USAGE = Usage(3, 4)
_TEXT = st.text(st.characters(codec="utf-8"), min_size=1)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    max_leaves=12,
)


@settings(max_examples=50)
@given(body=st.dictionaries(_TEXT, _JSON, max_size=3))
def test_small_steps_encode_what_one_does(body: dict) -> None:
    assert json.loads(encoded(body)) == body
    assert b"\n" not in encoded(body)


def decode(event: bytes) -> dict:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event[6:])


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("include_usage", [True, False])
@given(text=_TEXT, model=_TEXT)
def test_a_text_event_is_one_line_with_that_text(kind: Kind, include_usage: bool, text: str, model: str) -> None:
    stream = EventStream(Envelope(kind, "id", 7, model), include_usage=include_usage)
    chunk = decode(stream.text(text))
    choice = chunk["choices"][0]
    assert (choice["delta"]["content"] if kind == "chat" else choice["text"]) == text
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("id", 7, model)
    assert choice["finish_reason"] is None
    assert ("usage" in chunk) == include_usage


@pytest.mark.parametrize("usage", [USAGE, None])
def test_the_end_has_finish_usage_and_terminator_in_this_order(usage: Usage | None) -> None:
    stream = EventStream(Envelope("chat", "id", 7, "m"), include_usage=usage is not None)
    *frames, done, rest = (stream.finish(0, "stop") + stream.end(usage)).split(b"\n\n")
    assert (done + b"\n\n", rest) == (DONE, b"")
    chunks = [decode(frame + b"\n\n") for frame in frames]
    assert chunks[0]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"] for chunk in chunks[1:]] == ([usage.as_json()] if usage else [])
    assert all(chunk["choices"] == [] for chunk in chunks[1:])


def test_only_a_chat_opens_with_a_role() -> None:
    assert EventStream(Envelope("completion", "id", 7, "m"), include_usage=False).first() == b""
    first = decode(EventStream(Envelope("chat", "id", 7, "m"), include_usage=False).first())
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
