"""What reaches a stock mlx_lm.server, and what is refused before it could be broken or misled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.adapters.mlx_lm_server import adapt
from runtime.gateway.bodies import Body, parse_chat, parse_completion
from runtime.gateway.errors import ApiError

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def chat(**more: Any) -> Body:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **more}).encode())


def text(**more: Any) -> Body:
    return parse_completion(json.dumps({"model": "m", "prompt": "once", **more}).encode())


def sent(path: str, body: Body) -> dict[str, Any]:
    adapted = adapt(path, body)
    document: dict[str, Any] = json.loads(adapted.raw)
    assert document == adapted.document
    return document


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tool_choice": "none"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"parallel_tool_calls": False},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"stop": ["a", ""]},
        {"stop": ""},
        {"seed": -1},
        {"seed": 2**63},
        {"temperature": -0.5},
        {"top_p": 1.5},
        {"logit_bias": {"5": 1}},
        {"top_k": 1_000_000},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"adapters": "/etc"},
        {"draft_model": "org/other"},
        {"num_draft_tokens": 3},
        {"role_mapping": {"user": "x"}},
        {"chat_template_kwargs": {"enable_thinking": False, "template": "x"}},
        {"xtc_probability": 0.5},
        {"whatever": 1},
        {"stream_options": {"include_usage": "yes"}, "stream": True},
    ],
)
def test_what_it_cannot_do_is_refused_by_name(more: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        adapt(CHAT_PATH, chat(**more))
    assert refused.value.status == 400
    assert (refused.value.param or "").split("[")[0] in more
    assert str(refused.value.param) in refused.value.message


@pytest.mark.parametrize("prompt", [["a", "b"], ["a"], [1, 2], [[1], [2]]])
def test_prompts_that_would_end_its_generation_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as refused:
        adapt(TEXT_PATH, text(prompt=prompt))
    assert (refused.value.status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize("more", [{"best_of": 2}, {"echo": True}, {"suffix": "x"}, {"logprobs": 2}, {"tools": []}])
def test_texts_have_parameters_of_their_own(more: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        adapt(TEXT_PATH, text(**more))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "tool_calls": {"a": 1}},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "not json"}}]},
        {"role": "assistant", "tool_calls": ["f"]},
        {"role": "user", "content": "half a pair: \ud800"},
    ],
)
def test_messages_that_it_cannot_take_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        adapt(CHAT_PATH, chat(messages=[USER, message]))
    assert refused.value.status == 400
    assert str(refused.value.param).startswith("messages")


def test_what_works_is_passed_on() -> None:
    more = {
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 1,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["a", "b"],
        "presence_penalty": 0.5,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert sent(CHAT_PATH, chat(**more)) == {"model": "m", "messages": [USER], **more}
    assert sent(TEXT_PATH, text(max_tokens=5)) == {"model": "m", "prompt": "once", "max_tokens": 5, **STREAMED}


def test_what_changes_nothing_is_left_out() -> None:
    harmless = {
        "n": 1,
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "user": "me",
        "temperature": None,
        "stop": None,
        "stream": False,
        "metadata": {},
    }
    assert sent(CHAT_PATH, chat(**harmless)) == {"model": "m", "messages": [USER], **STREAMED}
    assert sent(TEXT_PATH, text(best_of=1, logprobs=None)) == {"model": "m", "prompt": "once", **STREAMED}


def test_it_is_always_asked_for_a_stream_and_the_client_gets_what_it_wants() -> None:
    whole, streamed = adapt(CHAT_PATH, chat()), adapt(CHAT_PATH, chat(stream=True))
    assert (whole.is_stream, whole.is_collected) == (False, True)
    assert (streamed.is_stream, streamed.is_collected) == (True, False)
    assert streamed.document == {"model": "m", "messages": [USER], "stream": True}


def test_messages_are_put_into_its_shape() -> None:
    messages = [
        {"role": "developer", "content": "be brief", "extra": 1},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    assert sent(CHAT_PATH, chat(messages=messages))["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]


@given(
    st.dictionaries(
        st.sampled_from(["n", "stop", "seed", "tools", "logit_bias", "stream_options", "logprobs", "zzz", "prompt"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=4,
    )
)
def test_nothing_that_passes_the_general_checks_escapes_as_another_error(more: dict[str, Any]) -> None:
    for path, make in ((CHAT_PATH, chat), (TEXT_PATH, text)):
        try:
            adapted = adapt(path, make(**more))
        except ApiError as error:
            assert error.status == 400
            continue
        document = json.loads(adapted.raw)
        assert document["model"] == "m"
        stops = document.get("stop", [])
        assert all(isinstance(stop, str) and stop for stop in ([stops] if isinstance(stops, str) else stops))
        assert path == CHAT_PATH or (isinstance(document["prompt"], str) and document["prompt"])
