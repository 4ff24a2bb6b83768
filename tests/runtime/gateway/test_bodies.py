"""What is refused before anybody is asked, and that rewriting changes nothing but the model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.bodies import Body, parse_chat, parse_completion, with_model
from runtime.gateway.errors import ApiError

GOOD = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
HOST = "http://192.0.2.1/latest"
DATA = "data:image/png;base64,AA=="

BAD_JSON = [
    b"",
    b"   ",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"42",
    b"{'model': 'chat'}",
    b'{"model": "chat",}',
    b'{"model": "chat", "messages": [NaN]}',
    b'{"temperature": Infinity}',
    b'{"temperature": -Infinity}',
    b'{"temperature": 1e999}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"model": "ch\xff"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"model": "a\nb"}',
    b"[" * 100_000,
    b'{"a":' * 65 + b"1" + b"}" * 65,
    b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
    b"{}{}",
    b'{"model": "chat"}\x00',
]
BAD_CHAT: list[dict[str, Any]] = [
    {},
    {"model": "chat"},
    {"messages": GOOD["messages"]},
    GOOD | {"model": ""},
    GOOD | {"model": None},
    GOOD | {"model": 3},
    GOOD | {"model": ["chat"]},
    GOOD | {"model": "x" * 300},
    GOOD | {"messages": []},
    GOOD | {"messages": None},
    GOOD | {"messages": {}},
    GOOD | {"messages": "hi"},
    GOOD | {"messages": ["hi"]},
    GOOD | {"messages": [{}]},
    GOOD | {"messages": [{"role": 1, "content": "x"}]},
    GOOD | {"messages": [{"role": "", "content": "x"}]},
    GOOD | {"messages": [{"role": "user", "content": 5}]},
    GOOD | {"messages": [{"role": "user", "content": [5]}]},
    GOOD | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "uuid": "1", "image_url": HOST}]}]},
    GOOD | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "video_url": {"url": HOST}}]}]},
    GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": DATA, "audio_url": HOST}]}]},
    GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": DATA, "IMAGE_URL": HOST}]}]},
    GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url", "Image_Url": {"url": HOST}}]}]},
    GOOD
    | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA, "URL": HOST}}]}]},
    GOOD | {"messages": [{"role": "user", "content": "x", "Content": [{"type": "image_url", "image_url": HOST}]}]},
    GOOD | {"messages": [{"role": "user", "content": "x", "Role": "system"}]},
    GOOD | {"stream": "yes"},
    GOOD | {"stream": 1},
    GOOD | {"stream_options": []},
    GOOD | {"max_tokens": 0},
    GOOD | {"max_tokens": -1},
    GOOD | {"max_tokens": 1.5},
    GOOD | {"max_tokens": True},
    GOOD | {"max_completion_tokens": "10"},
    GOOD | {"n": 0},
    GOOD | {"temperature": "hot"},
    GOOD | {"temperature": True},
    GOOD | {"top_p": []},
    GOOD | {"top_k": 1.5},
    GOOD | {"seed": "s"},
    GOOD | {"stop": 1},
    GOOD | {"stop": [1]},
    GOOD | {"logprobs": "all"},
    GOOD | {"logit_bias": []},
    GOOD | {"response_format": "json"},
    GOOD | {"tools": {}},
    GOOD | {"user": 7},
    GOOD | {"Model": "another"},
    GOOD | {"STREAM": True},
    GOOD | {"\u017ftream": True},
    GOOD | {"logit_bia\u017f": None},
    GOOD | {"top_\u212a": 3},
    GOOD | {"Tools": []},
    GOOD | {"Api_Base": "http://evil"},
    GOOD | {"api_base": "http://evil"},
    GOOD | {"base_url": None},
    GOOD | {"api_key": "k"},
    GOOD | {"extra_headers": {"a": "b"}},
]
BAD_COMPLETION: list[dict[str, Any]] = [
    {"model": "chat"},
    {"model": "chat", "prompt": ""},
    {"model": "chat", "prompt": None},
    {"model": "chat", "prompt": []},
    {"model": "chat", "prompt": [""]},
    {"model": "chat", "prompt": ["a", 1]},
    {"model": "chat", "prompt": [[]]},
    {"model": "chat", "prompt": [-1]},
    {"model": "chat", "prompt": {"a": 1}},
    {"model": "chat", "prompt": 5},
    {"prompt": "x"},
]


def test_a_body_that_is_no_json_is_told_with_the_place_and_without_its_text():
    with pytest.raises(ApiError) as caught:
        parse_chat(b'{"model": "chat",\n "messages": [secret]}')
    assert caught.value.message == "The request body is not valid JSON: Expecting value: line 2 column 15."


@pytest.mark.parametrize("raw", BAD_JSON)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with pytest.raises(ApiError) as caught:
            parse(raw)
        assert caught.value.status == 400
        assert json.loads(caught.value.body())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("document", BAD_CHAT, ids=lambda document: json.dumps(document)[:60])
def test_bad_chat_bodies_are_refused_and_named(document: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(json.dumps(document).encode())
    assert caught.value.status == 400
    assert caught.value.param


@pytest.mark.parametrize("document", BAD_COMPLETION, ids=lambda document: json.dumps(document)[:60])
def test_bad_completion_bodies_are_refused_and_named(document: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion(json.dumps(document).encode())
    assert caught.value.status == 400
    assert caught.value.param


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": None, "stop": None, "tools": [], "n": 1, "unknown": {"a": [1]}},
        {"stop": ["a", "b"], "logprobs": True, "top_logprobs": 3, "temperature": 0, "max_completion_tokens": 5},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        {"someKey": 1, "MODELS": 2, "\u017f": 3, "me\u00dfages": 4, "\ufb06op": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": None}]}]},
    ],
)
def test_what_clients_really_send_passes(more: dict[str, Any]) -> None:
    parse_chat(json.dumps(GOOD | more).encode())


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_kind_of_prompt_passes(prompt: object) -> None:
    assert parse_completion(json.dumps({"model": "chat", "prompt": prompt}).encode()).model == "chat"


def test_nesting_up_to_the_limit_passes() -> None:
    depth = 62
    parse_chat(json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}")


def body(raw: str) -> Body:
    return Body(raw.encode(), json.loads(raw), json.loads(raw)["model"], is_stream=False)


@pytest.mark.parametrize(
    "raw",
    [
        '{"model":"chat","x":1.50,"big":12345678901234567890}',
        '{ "x" : 1 , "model" :\n "chat" }',
        r'{"x": "say \"model\": \"no\"", "model": "chat"}',
        '{"x": {"model": "inner"}, "model": "chat"}',
        r'{"x": {"model": "inner"}, "\u006dodel": "chat"}',
        '{"model": "first", "model": "chat"}',
        r'{"model": "ch\u0061t", "x": "\u00e9 é \ud83d\ude00"}',
        '{"x": ["model", "model"], "model": "chat"}',
        r'{"model": "a\"b", "y": "\\"}',
    ],
)
def test_only_the_model_changes(raw: str) -> None:
    name = 'new/model:"7b"\\é'
    rewritten = json.loads(with_model(body(raw), name))
    assert rewritten == {**json.loads(raw), "model": name}


def test_bytes_are_kept_where_the_model_is_named_once() -> None:
    raw = '{"model":"chat", "x": 1.50, "messages": []}'
    assert with_model(body(raw), "new") == raw.replace('"model":"chat"', '"model":"new"').encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8) | st.just("model"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("model"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5) | st.just("model"), JSON, max_size=4), st.text(max_size=9), st.booleans())
def test_rewriting_any_document_changes_only_the_model(document: dict[str, Any], name: str, is_ascii: bool) -> None:
    raw = json.dumps({**document, "model": "chat"}, ensure_ascii=is_ascii)
    assert json.loads(with_model(body(raw), name)) == {**document, "model": name}
