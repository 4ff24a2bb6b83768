"""What all translations write: OpenAI's requests."""

from __future__ import annotations

import json

import pytest

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.translation import openai_body


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
