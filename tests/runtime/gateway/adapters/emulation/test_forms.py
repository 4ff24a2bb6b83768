"""Answers that must have a form: what is taken for one, and what is told where it is none."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.adapters.emulation.forms import (
    BadSchemaError,
    Unfit,
    asked_again,
    call_of,
    json_in,
    maybe_call_of,
    shaped,
    told,
    value_of,
)
from runtime.gateway.adapters.emulation.schema import LARGEST, check_schema, faults

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}},
           "required": ["city"], "$defs": {"City": {"type": "string", "minLength": 2}}}}  # fmt: skip
CLOCK = {"name": "clock"}
HI = [{"role": "user", "content": "hi"}]


def choice(content: str | None, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}


@pytest.mark.parametrize(
    "said",
    [
        '{"a": 1}',
        '  {"a": 1}\n',
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}```',
        'Here it is:\n```json\n{"a": 1}\n```\nAnything else?',
        'The answer is {"a": 1}, I think.',
        '<think>{"a": "no"}</think>\n{"a": 1}',
    ],
)
def test_the_value_is_taken_out_of_what_models_put_around_it(said: str) -> None:
    found = shaped(value_of(SCHEMA), choice(said), "id")
    assert isinstance(found, dict) and json.loads(found["message"]["content"]) == {"a": 1}
    assert found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "no JSON"),
        ("Sure, I will.", "no JSON"),
        ('{"a": 1', "no JSON"),
        ('{"a": NaN}', "no JSON"),
        ('{"a": "1"}', "$.a: '1' is not of type 'integer'"),
        ('{"b": 1, "a": 1}', "'b' is not allowed"),
        ("[1]", "is not of type 'object'"),
    ],
)
def test_what_has_not_the_form_says_why(said: str, fault: str) -> None:
    found = shaped(value_of(SCHEMA), choice(said), "id")
    assert isinstance(found, Unfit) and found.text == said and fault in found.faults[0], found


def test_an_answer_that_was_cut_off_is_given_as_it_is_and_a_call_is_not() -> None:
    assert shaped(value_of(SCHEMA), choice('{"a": ', "length"), "id") == choice('{"a": ', "length")
    found = shaped(call_of([CLOCK]), choice('{"name": "clo', "length"), "id")
    assert isinstance(found, Unfit) and found.is_cut


def test_a_call_in_place_of_an_answer_is_as_good() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    given_call = choice(None, "tool_calls", tool_calls=calls)
    assert shaped(value_of(SCHEMA), given_call, "id") == given_call


def test_a_call_is_made_of_its_form() -> None:
    form = call_of([WEATHER, CLOCK])
    found = shaped(form, choice('{"name": "weather", "arguments": {"city": "Rome"}}'), "id")
    assert isinstance(found, dict)
    (call,) = found["message"]["tool_calls"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"} and call["id"].startswith("call_")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"name": "weather", "arguments": {"city": 1}}, "$.arguments.city"),
        ({"name": "weather", "arguments": {"city": "x"}}, "too short"),
        ({"name": "weather"}, "'arguments' is a required property"),
        ({"name": "door", "arguments": {}}, "one of: weather, clock"),
        ({"tool": "clock"}, "one of: weather, clock"),
        ([], "one of: weather, clock"),
    ],
)
def test_a_call_that_is_wrong_is_told_what_is_wrong_with_that_function(said: Any, fault: str) -> None:
    found = shaped(call_of([WEATHER, CLOCK]), choice(json.dumps(said)), "id")
    assert isinstance(found, Unfit) and fault in found.faults[0], found


def test_calls_that_the_engine_has_read_are_checked_too() -> None:
    def called(name: str, arguments: str) -> dict[str, Any]:
        return choice(None, "stop", tool_calls=[{"id": "1", "function": {"name": name, "arguments": arguments}}])

    form = call_of([WEATHER])
    good = shaped(form, called("weather", '{"city": "Rome"}'), "id")
    assert isinstance(good, dict) and good["finish_reason"] == "tool_calls"
    assert isinstance(shaped(form, called("weather", "{}"), "id"), Unfit)
    assert isinstance(shaped(form, called("clock", "{}"), "id"), Unfit)


def test_a_call_that_may_be_made_or_not() -> None:
    form = maybe_call_of([WEATHER, CLOCK])
    for said in ("It is noon.", '{"time": "noon"}', '{"name": "door", "arguments": {}}', '{"name": "clock"}', "[1]"):
        assert shaped(form, choice(said), "id") == choice(said)
    called = shaped(form, choice('```json\n{"name": "clock", "arguments": {}}\n```'), "id")
    assert isinstance(called, dict) and called["message"]["tool_calls"][0]["function"]["name"] == "clock"
    assert isinstance(shaped(form, choice('{"name": "weather", "arguments": {}}'), "id"), Unfit)
    form.check()


def test_the_schema_of_calls_is_one_that_others_read_alike() -> None:
    form = call_of([WEATHER, CLOCK])
    jsonschema.Draft202012Validator.check_schema(form.schema)
    validator = jsonschema.Draft202012Validator(form.schema)
    assert validator.is_valid({"name": "weather", "arguments": {"city": "Rome"}})
    assert not validator.is_valid({"name": "weather", "arguments": {"city": "x"}})
    assert not validator.is_valid({"name": "clock", "arguments": {}, "more": 1})


def test_the_second_try_tells_what_was_wrong_with_the_first() -> None:
    asked = told(HI, "Answer with JSON.")
    again = asked_again(asked, Unfit("nope", ("it is no JSON",)))
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == "nope" and "it is no JSON" in again[3]["content"]
    parts = told([{"role": "system", "content": [{"type": "text", "text": "x"}]}, *HI], "More.")
    assert parts[0]["content"][-1] == {"type": "text", "text": "\n\nMore."}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "no valid JSON Schema"),
        ({"properties": {"a": {"pattern": "("}}}, "pattern"),
        ({"patternProperties": {"(?=a)": {}}}, "pattern"),
        ({"enum": ["x" * LARGEST]}, "larger than"),
        ({"anyOf": [{}] * 5000}, "more than 4096"),
    ],
)
def test_schemas_that_cannot_be_checked_are_refused_beforehand(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSchemaError, match=reason):
        check_schema(schema)


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "#/nowhere", "other"])
def test_nothing_that_a_schema_names_is_fetched(place: str) -> None:
    with pytest.raises(BadSchemaError, match="refers to what is not in it"):
        faults({"$ref": place}, {})


def test_a_pattern_that_takes_python_for_ever_is_matched_at_once() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    assert faults(schema, "a" * 5000 + "!") and not faults(schema, "a" * 5000)
    with pytest.raises(BadSchemaError, match="RecursionError"):
        faults({"$ref": "#"}, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abx"), inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.sampled_from(
    [
        SCHEMA,
        {"patternProperties": {"^[ab]": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        {"type": "array", "items": {"type": ["string", "null"], "pattern": "a"}, "uniqueItems": True},
        {"properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"anyOf": [{"const": 1}, {"type": "object"}]}}},
        {"patternProperties": {"x": False}, "properties": {"a": True}, "additionalProperties": False},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}], "definitions": {}},
    ]
)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, JSON)
def test_values_are_judged_as_jsonschema_judges_them(schema: dict[str, Any], value: Any) -> None:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    assert (faults(schema, value) == ()) == kind(schema).is_valid(value)


@settings(max_examples=100, deadline=None)
@given(JSON, st.sampled_from(["", "Well: ", "```json\n", "\n\n"]))
def test_any_value_is_found_in_what_stands_around_it(value: Any, before: str) -> None:
    if before == "Well: " and not isinstance(value, dict | list):
        return
    text = before + json.dumps(value) + ("\n```" if before.startswith("```") else "")
    found = json_in(text)
    assert found is not None and found[0] == value and json.loads(found[1]) == value


def test_a_fence_that_is_never_closed_is_left_at_once() -> None:
    for filling in ("a", " "):
        assert json_in("```" + filling * 500_000 + "x") is None


_EVIL = "^(a+)+$"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$schema": jsonschema.Draft202012Validator.META_SCHEMA["$schema"], "pattern": _EVIL}}},
        {
            "$schema": jsonschema.Draft202012Validator.META_SCHEMA["$schema"],
            "properties": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}},
            "$defs": {"a": {"$schema": jsonschema.Draft7Validator.META_SCHEMA["$schema"], "pattern": _EVIL}},
        },
        {
            "$schema": jsonschema.Draft7Validator.META_SCHEMA["$schema"],
            "properties": {"a": {"type": ["string", "object"], "pattern": _EVIL}, "b": {"$ref": "#"}},
        },
    ],
)
def test_a_part_that_names_its_draft_is_read_in_linear_time_too(schema: dict[str, Any]) -> None:
    check_schema(schema)
    assert faults(schema, {"a": "a" * 5000 + "!"})
    assert faults(schema, {"a": "a" * 5000}) == ()


def test_properties_that_are_left_over_are_never_matched_as_python_does() -> None:
    schema = {"patternProperties": {_EVIL: True}, "allOf": [{"unevaluatedProperties": False}]}
    with pytest.raises(BadSchemaError, match="unevaluatedProperties"):
        check_schema(schema)


def test_a_schema_whose_parts_double_at_every_level_is_given_up() -> None:
    levels = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)}
    schema = {"$defs": {**levels, "a60": {"type": "string"}}, "$ref": "#/$defs/a0"}
    check_schema(schema)
    with pytest.raises(BadSchemaError, match="too many steps"):
        faults(schema, {})


def test_a_long_answer_of_ordinary_shape_is_within_the_steps() -> None:
    names = [f"key_{n}" for n in range(10)]
    item = {
        "type": "object",
        "properties": {name: {"type": ["string", "null"], "maxLength": 50} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    assert faults({"type": "array", "items": item}, [dict.fromkeys(names, "value")] * 1000) == ()


@pytest.mark.parametrize("place", ["schema", "value"])
def test_items_that_cannot_be_sorted_are_compared_in_linear_time(place: str) -> None:
    mixed: list[Any] = [item for n in range(15_000) for item in (n, str(n))]
    if place == "schema":
        with pytest.raises(BadSchemaError, match="alike"):
            check_schema({"$schema": "http://json-schema.org/draft-04/schema#", "enum": [*mixed, 0]})
    else:
        assert faults({"uniqueItems": True}, mixed) == ()
        assert faults({"uniqueItems": True}, [*mixed, 0.0]) != ()


@pytest.mark.parametrize(
    ("items", "is_unique"),
    [
        ([1, True, "1"], True),
        ([1, 1.0], False),
        ([{"a": [1], "b": 2}, {"b": 2, "a": [1.0]}], False),
        ([[], {}, None, False, 0], True),
    ],
)
def test_items_are_alike_as_json_schema_says(items: list[Any], is_unique: bool) -> None:
    assert (faults({"uniqueItems": True}, items) == ()) is is_unique
    assert jsonschema.Draft202012Validator({"uniqueItems": True}).is_valid(items) is is_unique


@pytest.mark.parametrize(
    "patterns",
    [
        [r"\w{60}" + "a" * n for n in range(10)],
        [r"(\w{6}){10}" + "a" * n for n in range(10)],
        [f"a{n}" for n in range(300)],
        ["[a-z]{3000}" + "b" * n for n in range(10)],
    ],
)
def test_patterns_that_would_fill_the_memory_are_refused(patterns: list[str]) -> None:
    with pytest.raises(BadSchemaError, match="too many or too large"):
        check_schema({"properties": {f"p{n}": {"pattern": pattern} for n, pattern in enumerate(patterns)}})


def test_patterns_of_ordinary_size_are_taken() -> None:
    patterns = [
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})$",
        r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$",
        r"^[A-Z]{2}\d{2}[A-Z0-9]{4}\d{7}([A-Z0-9]?){0,16}$",
        r"^[\w.+-]{1,64}@[\w-]+(\.[\w-]+)*$",
        r"^[]a\]\\{}]{2}$",
    ]
    check_schema({"properties": {f"p{n}": {"pattern": patterns[n % 5] + f"|{n}"} for n in range(20)}})
