"""Schemas as people write them: whatever is written under their grammar validates, or the schema is refused."""

import json
from itertools import product
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runtime.worker.tools.bounds import with_kept_bounds
from runtime.worker.tools.constrain import GrammarError
from runtime.worker.tools.formats import SCHEMA_PARAM, check_schema
from runtime.worker.tools.lark import Lark
from tests.runtime.worker.test_structured import SCHEMAS, SHORT, WORDS, record
from tests.runtime.worker.tiny import write_model
from tests.runtime.worker.walks import Walker

COUNT = {"type": "integer", "minimum": 0, "maximum": 99}
NULLABLE = {"anyOf": [SHORT, {"type": "null"}], "default": None, "title": "Maybe"}


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def formatted(name: str) -> dict[str, Any]:
    return record({"value": text(format=name)})


USUAL: dict[str, dict[str, Any]] = {
    **SCHEMAS,
    "pydantic": {
        "$defs": {
            "Address": record({"street": SHORT, "number": COUNT, "note": NULLABLE}, "note", title="Address"),
            "Kind": {"enum": ["home", "work"], "title": "Kind", "type": "string"},
        },
        **record(
            {
                "name": {"title": "Name", **SHORT},
                "kind": {"$ref": "#/$defs/Kind"},
                "address": {"anyOf": [{"$ref": "#/$defs/Address"}, {"type": "null"}], "default": None},
            },
            "address",
            title="Person",
        ),
    },
    "described reference": record({"a": {"$ref": "#/$defs/w", "description": "a word"}}, **{"$defs": {"w": WORDS}}),
    "list of records": {"type": "array", "items": record({"id": COUNT, "tag": WORDS}), "maxItems": 2},
    "list of lists": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "maxItems": 2,
    },
    "map of records": {
        "type": "object",
        "additionalProperties": record({"n": COUNT}),
        "minProperties": 1,
        "maxProperties": 2,
    },
    "discriminated": {
        "oneOf": [record({"type": {"const": "circle"}, "r": COUNT}), record({"type": {"const": "square"}, "a": COUNT})],
        "discriminator": {"propertyName": "type"},
    },
    "mixed enum": {"enum": [1, "one", None, True, [1], {"a": 1}]},
    "types": record({"value": {"type": ["string", "integer", "null"], "maxLength": 4, "minimum": 0, "maximum": 9}}),
    "negative number": {"type": "number", "minimum": -1.5, "maximum": -0.25},
    "tiny number": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.01},
    "just below zero": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0},
    "between whole numbers": record({"p": {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.25}}),
    "above zero": {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    "keys like keywords": record(
        {"exclusiveMinimum": COUNT, "maximum": {"const": {"exclusiveMinimum": 0, "maximum": 0.5}}}
    ),
    "large integer": {"type": "integer", "minimum": 10**15, "maximum": 10**15 + 5},
    "multiple of a part": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 1},
    "pattern in the middle": text(pattern="[0-9]{3}", maxLength=5),
    "pattern and length": text(pattern="^[a-c]+$", minLength=2, maxLength=4),
    "alternatives in a pattern": text(pattern="^(cat|dog|bird)s?$"),
    "letters of others": {"enum": ["Grüße", "日本", "\U0001f600", 'a "b" \\ c', "line\nend"]},
    "key with quotes": record({'a "b"\n': WORDS, "日本": WORDS}),
    "email": formatted("email"),
    "hostname": formatted("hostname"),
    "ipv6": formatted("ipv6"),
    "time": formatted("time"),
    "duration": formatted("duration"),
    "uri": formatted("uri"),
    "deep": record({"a": {"type": "array", "maxItems": 1, "items": record({"b": record({"c": NULLABLE}, "c")})}}),
    "allOf of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": WORDS}, "required": ["a"]},
            {"type": "object", "properties": {"b": COUNT}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "empty object": record({}),
    "empty list": {"type": "array", "maxItems": 0},
    "anything in a list": {"type": "array", "items": True, "maxItems": 1},
    "definitions of old": {
        "definitions": {"w": WORDS},
        "type": "array",
        "items": {"$ref": "#/definitions/w"},
        "maxItems": 2,
    },
    "no additional items": {
        "type": "array",
        "prefixItems": [WORDS, COUNT],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "not": {"type": "string", "not": {"const": "a"}},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "unevaluatedProperties": {"type": "object", "properties": {"a": WORDS}, "unevaluatedProperties": False},
    "uniqueItems": {"type": "array", "items": COUNT, "uniqueItems": True},
    "contains": {"type": "array", "contains": WORDS},
    "another document": {"$ref": "https://example.com/schema.json"},
    "an unknown format": text(format="no such format"),
    "nothing between": {"type": "integer", "minimum": 3, "maximum": 2},
    "look-ahead": text(pattern="^(?=a)b"),
}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    return Walker(write_model(tmp_path_factory.mktemp("words") / "model", layers=1))


def grammar(walker: Walker, schema: dict[str, Any]) -> str:
    check_schema(schema, SCHEMA_PARAM)
    lark = Lark(walker.grammars.special_tokens())
    found = lark.grammar(lark.json(schema, is_strict=True))
    walker.grammars.check(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("schema", USUAL.values(), ids=USUAL.keys())
def test_whatever_is_written_under_a_schema_validates(walker: Walker, schema: dict[str, Any]) -> None:
    rules = grammar(walker, schema)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    ended = 0
    for seed in range(6):
        written = walker.walk(rules, seed)
        if written is not None:
            ended += 1
            validator.validate(json.loads(written))
    assert ended


@pytest.mark.parametrize("low", [-1, -0.5, 0, 1])
def test_no_number_outside_of_its_bounds_is_written(walker: Walker, low: float) -> None:
    numbers = ("0", "-0", "0.0", "1", "1.0", "-1", "0.5", "-0.5", "1.25", "0.25", "-0.25", "2", "1.1")
    for size in (0.25, 0.5, 1):
        for least, most in product(("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            schema = {"type": "number", least: low, most: low + size}
            rules = grammar(walker, schema)
            for number in numbers:
                if walker.follows(rules, number):
                    Draft202012Validator(schema).validate(json.loads(number))


def test_bounds_of_any_size_are_read() -> None:
    huge = {"exclusiveMinimum": 10**400, "maximum": 1e308, "exclusiveMaximum": -(10**30), "minimum": float("inf")}
    assert with_kept_bounds(huge) == huge
    data = {"const": {"exclusiveMinimum": 0, "maximum": 0.5}, "properties": {"enum": {"type": "null"}}}
    assert with_kept_bounds(data) == data


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_kept_whole_is_refused(walker: Walker, schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        grammar(walker, schema)
