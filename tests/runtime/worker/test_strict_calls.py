"""Calls that a model may make keep the schemas of strict tools from the moment they begin, as far as that can be."""

from typing import Any

import pytest

from runtime.worker.errors import RequestError
from runtime.worker.preparing import constraint_of
from runtime.worker.request import parse_chat
from runtime.worker.tools.conversation import ToolSyntax
from tests.runtime.worker.test_call_grammars import family_of
from tests.runtime.worker.tiny import write_model
from tests.runtime.worker.walks import Walker

NUMBER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    return Walker(write_model(tmp_path_factory.mktemp("words") / "model", layers=1), ["<tool_call>", "</tool_call>"])


def tool(name: str, parameters: object, *, strict: bool) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def grammar(walker: Walker, family: str, *tools: dict[str, Any], **more: Any) -> str | None:
    syntax = ToolSyntax(*family_of(family), is_native=True)
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": list(tools), **more}
    return constraint_of(parse_chat(body, "m"), syntax, walker.grammars)


def call(name: str, arguments: str) -> str:
    return f'Well:\n<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_strict_tool_is_held_to_its_schema_and_another_one_to_what_is_usual(walker):
    loose = {"type": "object", "properties": {"y": {"type": "string", "format": "no such format"}}}
    found = grammar(walker, "json_tools", tool("f", NUMBER, strict=True), tool("g", loose, strict=False))
    assert found is not None
    assert walker.follows(found, "Nothing to call.")
    assert walker.follows(found, call("f", '{"x": 3}'))
    assert walker.follows(found, call("f", '{"x": 3}') + "\n" + call("g", '{"y": "z"}') + " and so on")
    for arguments in ("{}", '{"x": "3"}', '{"x": 3, "y": 1}'):
        assert not walker.follows(found, call("f", arguments))
    assert not walker.follows(found, call("h", "{}"))


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("json_tools", {"properties": {"x": {"type": "integer"}}, "required": ["x"], "not": {"required": ["y"]}}),
        ("glm47", {"properties": {"x": {"type": "integer"}, "s": {"type": "string", "pattern": "^a"}}}),
        ("qwen3_coder", {"properties": {"x": {"type": "integer"}, "s": {"type": ["string", "null"]}}}),
    ],
)
def test_a_schema_that_cannot_be_kept_whole_is_kept_as_far_as_without_strict(walker, family, parameters):
    found = grammar(walker, family, tool("f", {"type": "object", **parameters}, strict=True))
    assert found is not None
    assert walker.follows(found, "Nothing to call.")
    assert not walker.follows(found, "<tool_call>oops</tool_call>")


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """Return a `tool_choice` of OpenAI's that allows some of the tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_of_all_tools_those_that_are_allowed_alone_are_called(walker):
    tools = [tool("f", NUMBER, strict=False), tool("g", NUMBER, strict=False)]
    may = grammar(walker, "json_tools", *tools, tool_choice=allowed("auto", "f"))
    must = grammar(walker, "json_tools", *tools, tool_choice=allowed("required", "g"))
    assert may is not None
    assert must is not None
    assert walker.follows(may, "Nothing to call.")
    assert walker.follows(may, call("f", '{"x": 3}'))
    assert not walker.follows(may, call("g", '{"x": 3}'))
    assert walker.follows(must, call("g", '{"x": 3}').removeprefix("Well:\n"))
    assert not walker.follows(must, "Nothing to call.")


@pytest.mark.parametrize(
    "choice",
    [allowed("auto"), allowed("none", "f"), allowed("auto", "h"),
     {"type": "allowed_tools", "allowed_tools": {"tools": [3]}},
     {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "f"}]}}],
)  # fmt: skip
def test_what_allows_no_tool_is_refused(walker, choice):
    with pytest.raises(RequestError) as caught:
        grammar(walker, "json_tools", tool("f", NUMBER, strict=True), tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_beside_what_cannot_be_kept_the_others_are(walker):
    odd = {**NUMBER, "not": {"required": ["y"]}}
    found = grammar(walker, "json_tools", tool("f", NUMBER, strict=True), tool("g", odd, strict=True))
    assert found is not None
    assert not walker.follows(found, call("f", "{}"))


@pytest.mark.parametrize(
    ("family", "parameters", "more"),
    [
        ("json_tools", NUMBER, {"tool_choice": "none"}),
        ("glm47", {"type": "object", "anyOf": [{}]}, {}),
        ("json_tools", {"type": "object", "description": "x" * 300_000}, {}),
        ("json_tools", {"type": 5}, {}),
    ],
    ids=["no call is allowed", "no way to write it", "too large", "no schema"],
)
def test_where_it_cannot_be_kept_the_answer_is_free(walker, family, parameters, more):
    assert grammar(walker, family, tool("f", parameters, strict=True), **more) is None


def test_tools_that_are_not_strict_constrain_no_free_answer(walker):
    assert grammar(walker, "json_tools", tool("f", NUMBER, strict=False)) is None
