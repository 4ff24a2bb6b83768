"""What all translations read: the events of OpenAI's streams; and what they write: OpenAI's requests."""

from __future__ import annotations

import json

import pytest

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.translation import openai_body, read_events
from runtime.gateway.sse import StreamError
from tests.fakes.upstream import DONE, chunk_document, event


def test_events_are_read_for_what_they_say() -> None:
    chunk = chunk_document({"content": "größer\n\ndata: [DONE]\n\n"})
    told = [
        *(b": keep-alive\n\n", event(chunk), event(chunk).replace(b"\n", b"\r\n"), b"data:" + event(chunk)[6:]),
        *(b"data: {oops\n\n", b"data: [1]\n\n", b"event: ping\n\n", b"data: \n\n", b"id: 3\n" + event(chunk)),
        *(event({"error": {"message": "boom", "type": "t"}}), event({"error": "plain"}), DONE, b"data:[DONE]\n\n"),
    ]
    errors = [StreamError("t", "boom"), StreamError("", "plain")]
    assert list(read_events(b"".join(told))) == ["keep-alive", chunk, chunk, chunk, chunk, *errors, "done", "done"]


def test_an_error_of_null_is_none() -> None:
    assert list(read_events(event({"error": None, "choices": []}))) == [{"error": None, "choices": []}]


def test_a_stream_is_asked_to_say_its_usage() -> None:
    body = openai_body({"model": "m", "messages": []}, is_stream=True)
    assert json.loads(body.raw) == body.document
    assert body.is_stream
    assert body.document["stream_options"] == {"include_usage": True}
    assert "stream" not in openai_body({"model": "m", "messages": []}, is_stream=False).document


def test_half_a_surrogate_pair_is_no_reason_to_fail() -> None:
    raw = openai_body({"model": "m", "prompt": json.loads('"\\ud800 x"')}, is_stream=False).raw
    assert json.loads(raw)["prompt"] == "? x"


def test_a_wrong_type_is_refused_by_openais_name() -> None:
    with pytest.raises(ApiError) as refused:
        openai_body({"model": "m", "temperature": "hot"}, is_stream=False)
    assert (refused.value.status, refused.value.param) == (400, "temperature")
