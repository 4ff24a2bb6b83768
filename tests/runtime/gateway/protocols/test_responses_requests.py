"""Requests of the Responses API: what they are as chats, and what is refused, under its own name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.responses.request import parse_response

GOOD: dict[str, Any] = {"model": "chat", "input": "hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "g", "description": "does g"}
IMAGE = "data:image/png;base64,AAAA"


def chat(**more: Any) -> dict[str, Any]:
    """Return the chat that a request becomes, without its model."""
    body, _ = parse_response(json.dumps(GOOD | more).encode(), "resp_1", 7)
    assert json.loads(body.raw) == body.document
    return {key: value for key, value in body.document.items() if key != "model"}


def refused(document: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_response(json.dumps(document).encode(), "resp_1", 7)
    assert caught.value.status == 400
    return caught.value


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_text_is_a_message_of_the_user_and_instructions_come_before_it() -> None:
    assert chat() == {"messages": [{"role": "user", "content": "hi"}]}
    said = chat(instructions="be brief")["messages"]
    assert said == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "developer", "content": "d"}], [{"role": "system", "content": "d"}]),
        (
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            [{"role": "user", "content": "a"}],
        ),
        (
            user({"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": IMAGE, "detail": "low"}),
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what?"},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    ],
                }
            ],
        ),
        (
            [
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                        {"type": "refusal", "refusal": "b"},
                    ],
                }
            ],
            [{"role": "assistant", "content": "ab"}],
        ),
        (
            [
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "hm"}],
                },
                {"role": "assistant", "content": "let me see"},
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": '{"a":1}'},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            ],
            [
                {
                    "role": "assistant",
                    "content": "let me see",
                    "reasoning_content": "hm",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"a":1}'}},
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
            ],
        ),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        (
            # Reasoning that cannot be read by a model, and reasoning that led to nothing, is left out.
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                {"role": "assistant", "content": "a"},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "lost"}]},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "c"},
            ],
            [
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "c"},
            ],
        ),
    ],
)
def test_items_become_messages(items: list[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    assert chat(input=items)["messages"] == messages


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, {"logprobs": True}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"tools": []}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
        ({"tool_choice": "none"}, {}),
        (
            {"store": True, "background": False, "metadata": {"a": "b"}, "user": "u", "truncation": "disabled"},
            {},
        ),
        ({"previous_response_id": None, "conversation": None, "instructions": None, "temperature": None}, {}),
        ({"top_k": 3, "seed": 1, "stop": ["x"], "whatever": {"a": [1]}, "n": 1},
         {"top_k": 3, "seed": 1, "stop": ["x"], "whatever": {"a": [1]}, "n": 1}),
        ({"stream": True, "stream_options": {"include_obfuscation": False}},
         {"stream": True, "stream_options": {"include_usage": True}}),
    ],
)  # fmt: skip
def test_parameters_become_those_of_a_chat(asked: dict[str, Any], said: dict[str, Any]) -> None:
    made = chat(**asked)
    del made["messages"]
    assert made == said


F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
G = {"type": "function", "function": {"name": "g", "description": "does g"}}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (None, {"tools": [F, G]}),
        ("auto", {"tools": [F, G]}),
        ("none", {"tools": [F, G], "tool_choice": "none"}),
        ("required", {"tools": [F, G], "tool_choice": "required"}),
        (
            {"type": "function", "name": "g"},
            {"tools": [F, G], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
            {"tools": [G], "tool_choice": "required"},
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, {"tools": [F]}),
    ],
)
def test_tools_become_those_of_a_chat(choice: object, said: dict[str, Any]) -> None:
    made = chat(tools=[TOOL, OTHER], tool_choice=choice)
    del made["messages"]
    assert made == said


def test_one_call_at_a_time_is_asked_for_where_there_are_tools() -> None:
    assert chat(tools=[TOOL], parallel_tool_calls=False)["parallel_tool_calls"] is False


HTTP = "http://10.0.0.1/cat.png"
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": user({"type": "input_text"})}, "input[0].content[0].text"),
        ({"input": user({"text": "x"})}, "input[0].content[0].type"),
        ({"input": user({"type": "input_file", "file_id": "f"})}, "input[0].content[0].type"),
        ({"input": user({"type": "input_image", "image_url": HTTP})}, "input[0].content[0].image_url"),
        ({"input": user({"type": "input_image", "image_url": 3})}, "input[0].content[0].image_url"),
        ({"input": user({"type": "input_image", "file_id": "f"})}, "input[0].content[0].file_id"),
        ({"input": user({"type": "input_image", "image_url": IMAGE, "detail": []})}, "input[0].content[0].detail"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": IMAGE}]}]},
         "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": 3}]}, "input[0].type"),
        ({"input": [CALL | {"call_id": None}]}, "input[0].call_id"),
        ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output":
          [{"type": "input_image", "image_url": HTTP}]}]}, "input[0].output[0].image_url"),
        ({"input": [{"type": "reasoning", "content": [3]}]}, "input[0].content[0]"),
        ({"instructions": ["x"]}, "instructions"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"include": [{}]}, "include[0]"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": []}}, "reasoning.summary"),
        ({"reasoning": "low"}, "reasoning"),
        ({"text": {"verbosity": 3}}, "text.verbosity"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": "json"}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "server_url": HTTP}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL | {"parameters": []}]}, "tools[0].parameters"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [OTHER]}},
         "tool_choice.tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [TOOL]}}, "tool_choice.mode"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"api_base": "http://x"}, "api_base"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_name(more: dict[str, Any], param: str) -> None:
    error = refused(GOOD | more)
    assert error.param == param
    assert error.code in {"invalid_value", "unsupported_parameter"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "stream", "instructions", "n", "zz"]
)
ITEMS = st.lists(
    st.dictionaries(
        st.sampled_from(["type", "role", "content", "call_id", "name", "arguments", "output", "summary"]),
        st.sampled_from(["message", "user", "assistant", "function_call", "function_call_output", "reasoning"])
        | VALUES,
    ),
    max_size=4,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.none() | ITEMS)
@settings(max_examples=60, deadline=None)
def test_any_values_are_read_or_refused(more: dict[str, Any], items: list[dict[str, Any]] | None) -> None:
    document = GOOD | more | ({} if items is None else {"input": items})
    try:
        body, head = parse_response(json.dumps(document).encode(), "resp_1", 7)
    except ApiError as error:
        assert error.status == 400
    else:
        assert body.document["messages"]
        json.dumps(head.response("completed"))
