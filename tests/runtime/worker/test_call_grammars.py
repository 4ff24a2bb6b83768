"""What a grammar of calls allows is what the family's parser reads back, and what the tool's schema allows."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runtime.worker.tools.asked import Tool
from runtime.worker.tools.families import BARE_JSON, WRITERS, Family, calls, free_calls, schema_of
from runtime.worker.tools.lark import Lark
from runtime.worker.tools.reading import PYTHON_TAG, Parser, parse_bare_json, read_calls
from runtime.worker.tools.stream import CallPart, CallReader
from tests.runtime.worker.tiny import write_model
from tests.runtime.worker.walks import Walker

FLAT = {
    "city": {"type": "string"},
    "unit": {"enum": ["C", "F"]},
    "days": {"type": "integer", "minimum": 1, "maximum": 14},
    "exact": {"type": "boolean"},
    "limit": {"type": "integer"},
}
NESTED = {
    "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
    "box": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "name": {"$ref": "#/$defs/name"}},
        "required": ["x"],
        "additionalProperties": False,
    },
}
DEFINITIONS = {"$defs": {"name": {"type": "string"}}}
MARKS = [
    "</parameter>", "</arg_value>", "</param>", "<escape>", '<|"|>', "<tool_call>", "</tool_call>", "[TOOL_CALLS]",
    "[ARGS]", "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_call>", "<tool_call|>", "<|open|>", "<|close|>",
    "<|sep|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_calls_section_begin|>", "<arg_key>",
    PYTHON_TAG,
]  # fmt: skip
NOW = Tool("now", None, None, is_strict=False)


def weather(properties: dict[str, Any], **more: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": ["city", "days"], **more}
    return Tool("weather", "Tells the weather.", schema, is_strict=False)


@pytest.fixture(scope="module", params=["spelt", pytest.param("special", marks=pytest.mark.slow)])
def walker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walker:
    directory = write_model(tmp_path_factory.mktemp("words") / "model", layers=1)
    return Walker(directory, MARKS, are_special=request.param == "special")


def family_of(name: str) -> tuple[Family, Parser]:
    if name == BARE_JSON:
        return Family(name, "", ""), parse_bare_json
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name.removesuffix('_list')}")
    return Family(name, module.tool_call_start, module.tool_call_end), module.parse_tool_call


def test_every_family_of_mlx_lm_can_be_constrained():
    import mlx_lm.tool_parsers

    (place,) = mlx_lm.tool_parsers.__path__
    known = {path.stem for path in Path(place).glob("*.py")} - {"__init__"}
    assert known <= WRITERS.keys()


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_random_answers_are_calls_that_the_schema_allows(walker, name):
    family, parser = family_of(name)
    properties = FLAT if name == "function_gemma" else {**FLAT, **NESTED}
    tools = [weather(properties, **DEFINITIONS), NOW]
    lark = Lark(walker.grammars.special_tokens())
    grammar = lark.grammar(calls(family, lark, tools, is_parallel=True))
    ended = 0
    for seed in range(5):
        text = walker.walk(grammar, seed)
        if text is None:
            continue
        ended += 1
        reader = CallReader(family.start, family.end, lambda inner: read_calls(parser, inner, tools), lambda: "id")
        parts = [*reader.push(text), *reader.finish(is_complete=True)]
        assert parts, text
        for part in parts:
            assert isinstance(part, CallPart), text
            (tool,) = (tool for tool in tools if tool.name == part.name)
            Draft202012Validator(schema_of(tool)).validate(json.loads(part.arguments))
    assert ended


@pytest.mark.parametrize(
    ("name", "tool", "problem"),
    [
        ("function_gemma", weather({**FLAT, **NESTED}), "'tags'"),
        ("qwen3_coder", weather({"days": {"type": "integer"}}), "'city'"),
        ("pythonic", Tool("get-weather", None, None, is_strict=False), "'get-weather' is no name"),
        ("glm47", Tool("f", None, {"anyOf": [{}]}, is_strict=False), "anyOf"),
        (
            "minimax_m2",
            Tool("f", None, {"properties": {"a": {"type": "string", "pattern": "^a"}}}, is_strict=True),
            "pattern of 'a'",
        ),
    ],
)
def test_what_a_syntax_cannot_hold_is_refused_by_name(name, tool, problem):
    family, _ = family_of(name)
    with pytest.raises(ValueError, match=problem):
        calls(family, Lark({}), [tool], is_parallel=True)


def referring(times: int) -> dict[str, Any]:
    """Return definitions each of which names the one before it twice: small to write, huge to write out."""
    parts: dict[str, Any] = {"a0": {"type": "integer"}}
    for number in range(1, times + 1):
        part = {"$ref": f"#/$defs/a{number - 1}"}
        parts[f"a{number}"] = {"type": "object", "properties": {"left": part, "right": part}}
    return parts


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (referring(30), "larger than"),
        ({"a30": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a30"}}}}, "refers to itself"),
        ({"a30": {"type": "array", "items": {"$ref": "#/$defs/a30"}}}, "items of"),
        (
            {
                "a30": {
                    "type": "object",
                    "properties": {n: {"type": "array", "items": {"$ref": "#/$defs/a30"}} for n in "ab"},
                }
            },
            "refers to itself|items of",
        ),
        ({"a30": {"$ref": "#/$defs/a30"}}, "the type of"),
        ({"a30": {"$ref": "#/$defs/b/default"}, "b": {"default": {"type": "object", "properties": 5}}}, "not found"),
    ],
    ids=["doubling", "object in itself", "list in itself", "lists in itself", "reference to itself", "no schema"],
)
def test_a_schema_that_refers_to_its_parts_is_written_out_within_bounds(parts, problem):
    tool = Tool("f", None, {"properties": {"a": {"$ref": "#/$defs/a30"}}, "$defs": parts}, is_strict=False)
    with pytest.raises(ValueError, match=problem):
        calls(family_of("gemma4")[0], Lark({}), [tool], is_parallel=True)


def test_definitions_that_every_argument_repeats_are_bounded():
    parts = {"x": {"type": "integer", "description": "x" * 50_000}}
    properties = {f"a{number}": {"$ref": "#/$defs/x"} for number in range(1000)}
    tool = Tool("f", None, {"properties": properties, "$defs": parts}, is_strict=False)
    with pytest.raises(ValueError, match="larger than"):
        calls(family_of("qwen3_coder")[0], Lark({}), [tool], is_parallel=True)


def test_a_reference_by_way_of_properties_is_followed():
    properties = {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"$ref": "#/properties/a/items"}}
    tool = Tool("f", None, {"properties": properties}, is_strict=False)
    calls(family_of("gemma4")[0], Lark({}), [tool], is_parallel=True)


def test_a_family_that_nobody_knows_cannot_be_asked_for():
    with pytest.raises(ValueError, match="family other"):
        calls(Family("other", "<", ">"), Lark({}), [NOW], is_parallel=True)


FREE_FAMILIES = sorted(set(WRITERS) - {BARE_JSON})
"""Those whose calls have an opening mark."""


@pytest.mark.parametrize("name", FREE_FAMILIES)
def test_a_free_answer_may_say_anything_and_its_calls_are_those_that_the_schema_allows(walker, name):
    family, parser = family_of(name)
    properties = FLAT if name == "function_gemma" else {**FLAT, **NESTED}
    tools = [weather(properties, **DEFINITIONS), NOW]
    special = walker.grammars.special_tokens()
    lark, must = Lark(special), Lark(special)
    free = lark.grammar(free_calls(family, lark, tools, is_parallel=True))
    text = next(
        text
        for seed in range(9)
        if (text := walker.walk(must.grammar(calls(family, must, tools, is_parallel=True)), seed)) is not None
    )
    for answer in ("", "No, <b>thanks</b>.\n{}", text, f"Look: {text}", f"{text}\nAnd {text}\n so it is."):
        assert walker.follows(free, answer), answer
    for end in ("oops", '{"name": 1}', " ", "<function=other>"):
        assert not walker.follows(free, f"Look: {family.start}{end}")
    for seed in range(3):
        said = walker.walk(free, seed, most=150) or ""
        reader = CallReader(family.start, family.end, lambda inner: read_calls(parser, inner, tools), lambda: "id")
        parts = [*reader.push(said), *reader.finish(is_complete=True)]
        assert not any(family.start in part.text for part in parts if not isinstance(part, CallPart)), said


def free_grammar(walker: Walker, name: str) -> str:
    """Return a grammar of free answers whose calls keep a schema."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [Tool("weather", None, {**schema, "additionalProperties": False}, is_strict=True), NOW]
    lark = Lark(walker.grammars.special_tokens())
    return lark.grammar(free_calls(family_of(name)[0], lark, tools, is_parallel=True))


def test_an_answer_of_llamas_is_held_once_it_names_a_tool(walker):
    grammar = free_grammar(walker, BARE_JSON)
    assert [text for text in LLAMA_ANSWERS if not walker.follows(grammar, text)] == []
    assert [text for text in LLAMA_BREACHES if walker.follows(grammar, text)] == []


LLAMA_ANSWERS = [
    "", "  \n", "Hi.", '{"answer": 42}', '{"name": "other", "x": 1}', "[1]", 'So {"name": "weather"}',
    '{"name": "weather", "parameters": {"city": "Paris"}}', '{"name": "now", "parameters": {}}',
    '\n<|python_tag|>{ "type": "function", "name": "weather", "arguments":{"city":"Paris"} }',
    '<|python_tag|>print("x")', "a <|sep|> b {", "<|sep|>x", "<|sep|>", " <|python_tag|> ",
]  # fmt: skip
LLAMA_BREACHES = [
    '{"name": "weather", "parameters": {}}', '{"name":"weather"}', '{"name": "weather", "parameters": {"city": 3}}',
    '  <|python_tag|>\n{"name" : "weather", "parameters": {"city": 3}}', '{"name": "now", "parameters": {"x": 1}}',
    '{"name": "weather", "parameters": {"city": "x"}} and so on', '{"type":"function","name":"weather","x":1}',
]  # fmt: skip


def test_what_else_the_first_token_of_a_mark_opens_stays_free(walker):
    grammar = free_grammar(walker, "kimi_k3")
    call = (
        '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>json type="object"<|sep|>{}<|close|>'
        "json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>"
    )
    good = call.replace("{}", '{"city": "Paris"}')
    answers = [
        "", "Hi", "<|open|>message<|sep|>hello<|close|>message<|sep|>", good, f"Look: {good} so", "<|open|>",
        "tools<|sep|>x",
        "<|open|>toolsmith<|sep|>a", "<|open|>tool<|sep|>", "<|open|>tools<|close|>x", "<|open|>tools<|open|>tools",
    ]  # fmt: skip
    breaches = [
        call,
        good + call,
        "<|open|>tools<|sep|>",
        "x<|open|>tools<|sep|>y",
        "<|open|>tools<|open|>tools<|sep|>y",
    ]
    assert [text for text in answers if not walker.follows(grammar, text)] == []
    assert [text for text in breaches if walker.follows(grammar, text)] == []


def test_a_mark_that_mixes_tokens_and_text_otherwise_constrains_no_free_answer():
    family = Family("json_tools", "<tool_call>", "</tool_call>")
    with pytest.raises(ValueError, match="several special tokens"):
        free_calls(family, Lark({"call>": 5}), [NOW], is_parallel=True)
