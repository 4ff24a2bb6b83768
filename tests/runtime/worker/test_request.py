"""Bodies become requests, or refusals that name the parameter."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.body import MAX_DEPTH, is_deeper, parse_json
from runtime.worker.errors import RequestError
from runtime.worker.messages import Message
from runtime.worker.request import ChatPrompt, TextPrompt, TokenPrompt, parse_chat, parse_completion
from tests.runtime.worker import bodies

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_FIELDS = st.sampled_from(
    sorted({name for body, _, _ in [*bodies.CHAT, *bodies.COMPLETIONS] for name in body})  # every field there is
)


@pytest.mark.parametrize(("name", "body"), bodies.BROKEN, ids=[name for name, _ in bodies.BROKEN])
def test_a_broken_body_is_refused(name: str, body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(parse_json(body), "tiny")
    assert caught.value.status == 400


@pytest.mark.parametrize(("body", "status", "param"), bodies.CHAT)
def test_a_wrong_chat_is_refused_by_parameter(body: dict[str, Any], status: int, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(body, "tiny")
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize(("body", "status", "param"), bodies.COMPLETIONS)
def test_a_wrong_completion_is_refused_by_parameter(body: dict[str, Any], status: int, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse_completion(body, "tiny")
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize("body", bodies.TOLERATED)
def test_null_empty_and_unknown_fields_pass(body: dict[str, Any]) -> None:
    parse_chat(body, "tiny")


@given(st.dictionaries(_FIELDS, _JSON))
def test_any_object_becomes_a_request_or_a_refusal(body: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            parse(body, "tiny")
        except RequestError as error:
            assert error.message


def test_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "c"}]
    request = parse_chat({"messages": messages}, "tiny")
    assert request.prompt == ChatPrompt((Message("system", "ab"), Message("user", "c")))


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [("a", TextPrompt("a")), (["a"], TextPrompt("a")), ([1, 2], TokenPrompt((1, 2)))],
)
def test_prompt_shapes(prompt: Any, parsed: Any) -> None:
    assert parse_completion({"prompt": prompt}, "tiny").prompt == parsed


def test_max_completion_tokens_replaces_max_tokens() -> None:
    assert parse_chat(bodies.chat(max_tokens=3, max_completion_tokens=5), "tiny").max_tokens == 5
    assert parse_chat(bodies.chat(max_tokens=None), "tiny").max_tokens is None
    assert parse_completion({"prompt": "a"}, "tiny").max_tokens == 16


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(_JSON, st.integers(0, 6))
def test_depth_is_that_of_the_parsed_value(value: object, limit: int) -> None:
    assert is_deeper(json.dumps(value).encode(), limit) == (_depth(value) > limit)


def test_brackets_in_strings_do_not_count() -> None:
    body = {"a": "[{" * 200 + '"' + "\\" + "[" * 200}
    assert parse_json(json.dumps(body).encode()) == body


@pytest.mark.parametrize("piece", [b'\\"', b'"', b"\\", b"[]", b'{"', b"\\\\"])
def test_the_depth_scan_is_linear(piece: bytes) -> None:
    # Quadratic work on this would take hours.
    body = b"[" * MAX_DEPTH + b'"' + piece * 300_000
    assert not is_deeper(body, MAX_DEPTH) or piece == b'{"'
