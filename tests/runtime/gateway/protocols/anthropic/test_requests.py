"""Anthropic's requests in OpenAI's words: what real clients send, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.anthropic.request import Wanted, parse_count, parse_messages

USER = {"role": "user", "content": "Hello"}
TOOL = {"name": "get_weather", "description": "Of a place.", "input_schema": {"type": "object", "properties": {}}}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"place": "Zürich"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}


def wanted(**fields: Any) -> Wanted:
    document = {"model": "chat", "max_tokens": 64, "messages": [USER], **fields}
    return parse_messages(json.dumps(document).encode())


def openai(**fields: Any) -> dict[str, Any]:
    return dict(wanted(**fields).body.document)


def talk(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = openai(messages=list(messages), **fields)["messages"]
    return said


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_the_least_request() -> None:
    assert openai() == {"model": "chat", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}


def test_parameters_have_their_openai_names() -> None:
    asked = openai(
        stop_sequences=["END", "\n\n"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        metadata={"user_id": "u-1"},
        stream=True,
        service_tier="auto",
        context_management={"edits": []},
        tomorrows_field=[1],
        container=None,
    )
    assert asked["stop"] == ["END", "\n\n"]
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["user"]) == (0.5, 0.9, 40, "u-1")
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert set(asked) == {
        *("model", "max_tokens", "messages", "stop", "temperature", "top_p", "top_k", "user"),
        *("stream", "stream_options"),
    }


@pytest.mark.parametrize(
    "system",
    [
        "Be brief.",
        [text("Be brief.", cache_control={"type": "ephemeral"})],
        [text("x-anthropic-billing-header: cc_version=2.1; cch=3f1;"), text("Be brief.")],
    ],
)
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    assert talk(USER, system=system) == [{"role": "system", "content": "Be brief."}, {**USER}]


def test_several_blocks_of_the_system_prompt_stay_apart() -> None:
    assert talk(USER, system=[text("One."), text("Two.")])[0]["content"] == "One.\n\nTwo."
    assert talk(USER, system=[]) == [USER]


def test_texts_are_one_text_and_images_are_parts_with_data_urls() -> None:
    assert talk(user(text("a"), text(""), text("b"))) == [{"role": "user", "content": "a\nb"}]
    (message,) = talk(user(text("What is it?"), PIXEL))
    assert message["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]


def test_documents_and_search_results_become_text() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    inner = {"type": "document", "source": {"type": "content", "content": [text("C")]}}
    found = {"type": "search_result", "title": "S", "source": "a book", "content": [text("R")]}
    assert talk(user(document, inner, found))[0]["content"] == "T\nD\nC\nS\na book\nR"


def test_a_round_of_tools_is_calls_and_results_in_openais_order() -> None:
    said = talk(
        USER,
        {"role": "assistant", "content": [text("Let me see."), CALL]},
        user(text("and now?"), RESULT),
        tools=[TOOL],
    )
    call = {"name": "get_weather", "arguments": '{"place": "Zürich"}'}
    assert said[1:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "user", "content": "and now?"},
    ]


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ({"content": "sunny"}, "sunny"),
        ({}, ""),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": "no such place", "is_error": True}, "Error: no such place"),
        ({"content": "Error: no such place", "is_error": True}, "Error: no such place"),
        ({"content": "fine", "is_error": False}, "fine"),
        ({"content": [{"type": "tool_reference", "tool_name": "other"}]}, "other"),
    ],
)
def test_results_of_tools_are_text(result: dict[str, Any], content: str) -> None:
    answer = {"type": "tool_result", "tool_use_id": "toolu_1", **result}
    said = talk(USER, {"role": "assistant", "content": [CALL]}, user(answer))
    assert said[-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": content}


def test_images_in_results_follow_in_a_message_of_the_user() -> None:
    said = talk(USER, {"role": "assistant", "content": [CALL]}, user({**RESULT, "content": [text("seen"), PIXEL]}))
    assert [message["role"] for message in said[2:]] == ["tool", "user"]
    assert said[2]["content"] == "seen"
    assert said[3]["content"][0]["type"] == "image_url"


def test_turns_of_one_role_are_one_turn_and_all_results_stand_behind_the_calls() -> None:
    second = {**CALL, "id": "toolu_2"}
    said = talk(
        USER,
        {"role": "user", "content": "there"},
        {"role": "assistant", "content": [CALL]},
        {"role": "assistant", "content": [second]},
        user(RESULT, text("one")),
        user({**RESULT, "tool_use_id": "toolu_2"}, text("two")),
    )
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool", "user"]
    assert said[0]["content"] == "Hello\nthere"
    assert [call["id"] for call in said[1]["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert said[-1]["content"] == "one\ntwo"


def test_thinking_of_earlier_turns_is_given_back_and_what_is_redacted_is_not() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "anything"}
    said = talk(
        USER,
        {"role": "assistant", "content": [thinking, {"type": "redacted_thinking", "data": "x"}, text("Yes.")]},
        USER,
    )
    assert said[1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}


def test_what_the_system_says_between_turns_keeps_its_place() -> None:
    aside = {"type": "mid_conv_system", "content": [text("Now in French.")]}
    said = talk(USER, {"role": "assistant", "content": "Hi"}, user(aside, text("Go on.")))
    assert said[2:] == [{"role": "system", "content": "Now in French."}, {"role": "user", "content": "Go on."}]
    said = talk(USER, {"role": "system", "content": "Now in French."}, USER)
    assert [message["role"] for message in said] == ["user", "system", "user"]


def test_an_answer_that_was_begun_is_to_be_continued() -> None:
    asked = openai(messages=[USER, {"role": "assistant", "content": "The answer is ("}])
    assert asked["messages"][-1] == {"role": "assistant", "content": "The answer is ("}
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False


def test_tools_are_functions() -> None:
    asked = openai(tools=[{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}])
    function = {"name": "get_weather", "description": "Of a place.", "strict": True}
    assert asked["tools"] == [{"type": "function", "function": {**function, "parameters": TOOL["input_schema"]}}]
    assert "tool_choice" not in asked
    assert "tools" not in openai(tools=[])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "get_weather"}, {"tool_choice": NAMED}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "auto", "disable_parallel_tool_use": False}, {"tool_choice": "auto"}),
    ],
)
def test_choices_of_tools(choice: Any, expected: Any) -> None:
    asked = openai(tools=[TOOL], tool_choice=choice)
    assert {key: asked[key] for key in asked if key in ("tool_choice", "parallel_tool_calls")} == expected


@pytest.mark.parametrize(
    ("fields", "effort", "is_shown"),
    [
        ({}, None, False),
        ({"output_config": {"effort": "high"}}, None, False),
        ({"thinking": {"type": "disabled"}}, "none", False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "medium", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 32_000}}, "high", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}, "low", False),
        ({"thinking": {"type": "adaptive"}}, None, True),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high", True),
    ],
)
def test_thinking_is_asked_for_by_effort_and_shown_to_who_asks(fields: Any, effort: Any, is_shown: bool) -> None:
    found = wanted(**fields)
    assert found.body.document.get("reasoning_effort") == effort
    assert found.shows_thinking is is_shown


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_form_of_the_answer_is_a_response_format(place: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    asked = openai(**{place: {"format": form} if place == "output_config" else form})
    assert asked["response_format"]["type"] == "json_schema"
    assert asked["response_format"]["json_schema"]["schema"] == schema


def test_a_count_needs_no_max_tokens() -> None:
    body = parse_count(json.dumps({"model": "chat", "messages": [USER], "system": "s", "tools": [TOOL]}).encode())
    assert set(body.document) == {"model", "messages", "tools"}
    assert body.is_stream is False


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"model": 5}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [user("text")]}, "messages[0].content[0]"),
    ({"messages": [user({})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": ["text"]})]}, "messages[0].content[0].type"),
    ({"messages": [user(text(None))]}, "messages[0].content[0].text"),  # type: ignore[arg-type]
    ({"messages": [user({"type": "video"})]}, "messages[0].content[0].type"),
    ({"messages": [user(CALL)]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "container_upload", "file_id": "f"})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source"),
    (
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/a.png"}})]},
        "messages[0].content[0].source.type",
    ),
    (
        {"messages": [user({**PIXEL, "source": {**PIXEL["source"], "media_type": "text/html"}})]},  # type: ignore[dict-item]
        "messages[0].content[0].source.media_type",
    ),
    (
        {"messages": [user({**PIXEL, "source": {**PIXEL["source"], "data": 5}})]},  # type: ignore[dict-item]
        "messages[0].content[0].source.data",
    ),
    (
        {"messages": [user({"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}})]},
        "messages[0].content[0].source.type",
    ),
    ({"messages": [USER, {"role": "assistant", "content": [PIXEL]}]}, "messages[1].content[0].type"),
    ({"messages": [USER, {"role": "assistant", "content": [{**CALL, "input": "x"}]}]}, "messages[1].content[0].input"),
    ({"messages": [USER, {"role": "assistant", "content": [{**CALL, "id": ""}]}]}, "messages[1].content[0].id"),
    ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, "messages"),
    ({"messages": [user({**RESULT, "tool_use_id": None})]}, "messages[0].content[0].tool_use_id"),
    ({"messages": [user({**RESULT, "is_error": "yes"})]}, "messages[0].content[0].is_error"),
    ({"messages": [user({**RESULT, "content": 5})]}, "messages[0].content[0].content"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_k": 1.5}, "top_k"),
    ({"stream": "yes"}, "stream"),
    ({"metadata": "me"}, "metadata"),
    ({"metadata": {"user_id": 5}}, "metadata.user_id"),
    ({"tools": {}}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
    ({"tools": [{**TOOL, "description": 5}]}, "tools[0].description"),
    ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict"),
    ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1].type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{**TOOL, "type": 5}]}, "tools[0].type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": 5}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": ["other"]}}, "tool_choice.name"),
    ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "tool_choice.disable_parallel_tool_use"),
    ({"thinking": {"type": "much"}}, "thinking.type"),
    ({"thinking": "yes"}, "thinking"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "display": 5}}, "thinking.display"),
    ({"output_config": 5}, "output_config"),
    ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
    ({"output_config": {"effort": ["low"]}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_format": 5}, "output_format.type"),
    ({"mcp_servers": [{"url": "http://10.0.0.1"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_is_refused_by_its_own_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        wanted(**fields)
    assert refusal.value.status == 400
    assert refusal.value.param == param
    assert param in refusal.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b'"x"', b"[" * 100_000])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    for parse in (parse_messages, parse_count):
        with pytest.raises(ApiError) as refusal:
            parse(raw)
        assert refusal.value.status == 400
