"""Vectors are counted and measured where they lie; what is not what was asked for reaches nobody."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.adapters.vectors import MOST_TEXTS, VectorReading, parse_embeddings, reading_of
from runtime.gateway.attempt import BadAnswerError, WrongDimensionError
from runtime.gateway.errors import ApiError

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)


def packed(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def answer(*vectors: Any, indent: int | None = None, **more: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data, "model": 'a "embedding": [1]', **more}, indent=indent).encode()


def reading(count: int = 1, dimensions: int | None = None, *, is_base64: bool = False) -> VectorReading:
    return VectorReading(count, dimensions, is_base64)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "embedding", "input": "hi", **fields}).encode()


@pytest.mark.parametrize(
    ("text", "count"),
    [("hi", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)],
)
def test_texts_and_tokens_are_counted(text: Any, count: int) -> None:
    assert reading_of(parse_embeddings(body(input=text)), None).count == count


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": None}, "input"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"stream": True}, "stream"),
        ({"model": ""}, "model"),
        ({"api_base": "http://elsewhere"}, "api_base"),
    ],
)
def test_a_wrong_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_embeddings(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_length_that_the_files_do_not_pin_is_refused() -> None:
    asked = parse_embeddings(body(dimensions=256))
    assert reading_of(asked, None).dimensions == 256
    assert reading_of(asked, 256).dimensions == 256
    with pytest.raises(ApiError, match="'dimensions' is 256, and the vectors of 'embedding' have 768 numbers"):
        reading_of(asked, 768)


@given(st.lists(NUMBERS.filter(lambda numbers: len(numbers) == 3), min_size=1, max_size=4), st.none() | st.just(2))
def test_what_is_in_order_is_passed_on_byte_for_byte(vectors: list[list[float]], indent: int | None) -> None:
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    raw = answer(*vectors, indent=indent, usage=usage)
    assert reading(len(vectors), 3).read(raw) is raw
    raw = answer(*map(packed, vectors), indent=indent, usage=usage)
    assert reading(len(vectors), 3, is_base64=True).read(raw) is raw


@given(NUMBERS, st.integers(1, 12))
def test_every_vector_is_measured_in_both_forms(numbers: list[float], wanted: int) -> None:
    for form in (numbers, packed(numbers)):
        checked = reading(1, wanted, is_base64=isinstance(form, str))
        if wanted == len(numbers):
            assert checked.read(answer(form))
        else:
            with pytest.raises(WrongDimensionError, match=f"vectors of {len(numbers)} numbers, {wanted} are wanted"):
                checked.read(answer(form))


@given(NUMBERS)
def test_numbers_become_base64_for_a_client_that_asked_for_it(numbers: list[float]) -> None:
    document = json.loads(reading(is_base64=True).read(answer(numbers)))
    raw = base64.b64decode(document["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(numbers)}f", raw)) == numbers


def test_vectors_come_in_the_order_of_the_texts() -> None:
    document = {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}
    found = json.loads(reading(2).read(json.dumps(document).encode()))
    assert [item["embedding"] for item in found["data"]] == [[1.0], [2.0]]
    without = {"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}
    found = json.loads(reading(2).read(json.dumps(without).encode()))
    assert [item["index"] for item in found["data"]] == [0, 1]


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b'{"data": []}',
        answer([1.0], [2.0]),
        answer([]),
        answer(None),
        answer({}),
        answer([[1.0, 2.0], [3.0, 4.0]]),
        answer([1.0, None]),
        b'{"data": [{"index": 0, "embedding": [1.0, NaN]}]}',
        b'{"data": [{"index": 0, "embedding": [1.0, -Infinity]}]}',
        b'{"data": [{"index": 0, "embedding": [1.0, 2.0',
        b'{"data": [{"index": 0, "embedding": "AAAA',
        answer(""),
        answer("AAAA"),
        answer("AAA"),
        answer("not base64"),
        b'{"data": [{"index": 7, "embedding": [1.0]}]}',
        answer([1.0])[:-1],
        b'{"data": [{"index": 0, "embedding": [1.0]}]',
    ],
)
def test_what_is_no_vector_for_each_text_is_a_bad_answer(raw: bytes) -> None:
    with pytest.raises(BadAnswerError):
        reading().read(raw)


def test_vectors_of_different_lengths_are_a_bad_answer() -> None:
    with pytest.raises(BadAnswerError, match="different lengths"):
        reading(2).read(answer([1.0], [1.0, 2.0]))


@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_escape_as_another_error(noise: bytes, is_base64: bool) -> None:
    for raw in (noise, b'{"data": [{"index": 0, "embedding": ' + noise):
        try:
            reading(is_base64=is_base64).read(raw)
        except BadAnswerError:
            continue


@given(st.lists(NUMBERS.filter(lambda numbers: len(numbers) == 3), min_size=1, max_size=3))
def test_numbers_come_in_the_form_that_is_asked_for_whichever_the_endpoint_gives(vectors: list[list[float]]) -> None:
    coded = json.loads(reading(len(vectors), is_base64=True).read(answer(*vectors)))
    assert [item["embedding"] for item in coded["data"]] == [packed(numbers) for numbers in vectors]
    plain = json.loads(reading(len(vectors)).read(answer(*map(packed, vectors))))
    assert [item["embedding"] for item in plain["data"]] == vectors


@pytest.mark.parametrize("vector", ["AAA!", "====", "AAAAAAA=AAAA"])
def test_what_is_no_base64_is_no_vector(vector: str) -> None:
    with pytest.raises(BadAnswerError):
        reading().read(answer(vector))


def test_a_request_has_as_many_texts_as_openai_takes_and_no_more() -> None:
    most = parse_embeddings(body(input=["a"] * MOST_TEXTS))
    assert reading_of(most, None).count == MOST_TEXTS
    with pytest.raises(ApiError) as error:
        reading_of(parse_embeddings(body(input=[[1, 2]] * (MOST_TEXTS + 1))), None)
    assert (error.value.status, error.value.param) == (400, "input")
    assert reading_of(parse_embeddings(body(input=[1] * (MOST_TEXTS + 1))), None).count == 1
