"""Conversations with tools become the prompts that models expect."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import load
from tokenizers import AddedToken, Tokenizer

from runtime.worker.errors import RequestError
from runtime.worker.messages import Message, PastCall, parse_messages
from runtime.worker.preparing import opens_thoughts
from runtime.worker.tools.asked import Named, Tool, ToolUse
from runtime.worker.tools.conversation import render, tool_syntax
from runtime.worker.tools.families import BARE_JSON, GENERIC
from tests.runtime.worker.tiny import TEMPLATE, write_model

LOOK = Tool("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}}, is_strict=False)
TELL = Tool("tell", None, None, is_strict=False)
BOTH = ToolUse((LOOK, TELL), "auto", is_parallel=True)
TURNS = (
    Message("user", "Look!"),
    Message("assistant", "", (PastCall("c1", "look", '{"at": "it"}'), PastCall("c2", "tell", ""))),
    Message("tool", "a cat", call_id="c1", name="look"),
    Message("tool", "told", call_id="c2", name="tell"),
    Message("user", "Well?"),
)
QWEN = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}{% set tool_call = tool_call.function %}"
    '<tool_call>{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}</tool_call>'
    "{% endfor %}{{ '\n' }}{% endfor %}assistant: "
)
TEXT_ARGUMENTS = (
    "{{ (tools or []) | tojson }}{% for message in messages %}"
    "{% for call in message.tool_calls or [] %}{{ 'ARGS ' + call.function.arguments }}{% endfor %}{% endfor %}"
    "{# mlx-lm looks for <tool_call> and tool_call.name #}"
)
THINKING = (
    "{{ (tools or []) | tojson }}{{ '' if enable_thinking is false else 'may think' }}{{ 'assistant: <think>\n' }}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("words") / "model", layers=1)


def tokenizer_with(base: Path, place: Path, template: str, *marks: str) -> Any:
    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    words.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    words.save(str(place / "tokenizer.json"))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return load(place)


def test_a_template_that_shows_tools_is_given_them(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, QWEN)
    syntax = tool_syntax(tokenizer)
    assert (syntax.family.name, syntax.family.start, syntax.is_native) == ("json_tools", "<tool_call>", True)
    text = render(TURNS, BOTH, tokenizer, syntax, is_constrained=False)
    assert text.count('"name": "look"') == 2
    assert '<tool_call>{"name": "look", "arguments": {"at": "it"}}</tool_call>' in text
    assert '<tool_call>{"name": "tell", "arguments": {}}</tool_call>' in text
    assert "tool: a cat\ntool: told\nuser: Well?" in text


def test_tools_that_may_not_be_called_are_not_shown(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, QWEN)
    syntax = tool_syntax(tokenizer)
    none = ToolUse(BOTH.tools, "none", is_parallel=True)
    assert "Looks." not in render(TURNS[:1], none, tokenizer, syntax, is_constrained=False)
    one = ToolUse(BOTH.tools, Named("tell"), is_parallel=True)
    text = render(TURNS[:1], one, tokenizer, syntax, is_constrained=True)
    assert '"tell"' in text
    assert "Looks." not in text


def test_a_template_that_wants_arguments_as_text_gets_them_so(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, TEXT_ARGUMENTS)
    text = render(TURNS, BOTH, tokenizer, tool_syntax(tokenizer), is_constrained=False)
    assert 'ARGS {"at": "it"}' in text


def test_a_template_without_tools_is_told_of_them_in_words(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, TEMPLATE)
    syntax = tool_syntax(tokenizer)
    assert (syntax.family.name, syntax.is_native) == (GENERIC, False)
    text = render((Message("system", "Be kind."), *TURNS), BOTH, tokenizer, syntax, is_constrained=False)
    assert text.startswith("system: Be kind.\n\nYou can call functions.")
    assert '{"name": "look", "description": "Looks.", "parameters":' in text
    assert 'assistant: <tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>' in text
    # This template refuses two users in a row, so results and what the user says next are one message.
    answers = "<tool_response>\na cat\n</tool_response>\n<tool_response>\ntold\n</tool_response>\nWell?"
    assert f"user: {answers}\n" in text


def test_where_no_system_is_known_the_user_tells_of_the_tools(base, tmp_path):
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = tokenizer_with(base, tmp_path, refuse + TEMPLATE)
    syntax = tool_syntax(tokenizer)
    text = render(TURNS, BOTH, tokenizer, syntax, is_constrained=False)
    assert text.startswith("user: You can call functions.")
    assert "no function helps.\n\nLook!\nassistant: <tool_call>" in text
    with pytest.raises(RequestError, match="System role not supported"):
        render((Message("system", "Be kind."), *TURNS), BOTH, tokenizer, syntax, is_constrained=False)


def test_a_conversation_without_tools_is_left_alone(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, TEMPLATE)
    text = render(TURNS[:1], None, tokenizer, tool_syntax(tokenizer), is_constrained=False)
    assert text == "user: Look!\nassistant: "


def test_what_llama_writes_is_read(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, "{{ (tools or []) | tojson }}", "<|python_tag|>")
    assert tool_syntax(tokenizer).family.name == BARE_JSON


@pytest.mark.parametrize(("marks", "name"), [(("[ARGS]",), "mistral"), ((), "mistral_list")])
def test_mistral_is_told_apart_and_gets_its_short_ids(base, tmp_path, marks, name):
    template = "{{ (tools or []) | tojson }}[TOOL_CALLS]{% for m in messages %}<{{ m.tool_call_id }}>{% endfor %}"
    tokenizer = tokenizer_with(base, tmp_path, template, *marks)
    syntax = tool_syntax(tokenizer)
    assert syntax.family.name == name
    turns = [Message("tool", "x", call_id="a-long-foreign-id"), Message("tool", "x", call_id="abcdef123")]
    text = render(turns, BOTH, tokenizer, syntax, is_constrained=False)
    assert "<abcdef123>" in text
    assert "foreign" not in text


def test_a_constrained_answer_is_not_thought_about(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, THINKING, "<think>", "</think>")
    syntax = tool_syntax(tokenizer)
    assert render(TURNS[:1], None, tokenizer, syntax, is_constrained=False).endswith("may thinkassistant: <think>\n")
    assert render(TURNS[:1], None, tokenizer, syntax, is_constrained=True).endswith("assistant: <think>\n</think>\n\n")
    for is_constrained in (False, True):
        text = render(TURNS[:1], None, tokenizer, syntax, is_constrained=is_constrained)
        assert opens_thoughts(tokenizer.encode(text), tokenizer) == (not is_constrained)


def test_a_template_that_refuses_is_the_requests_mistake(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, TEMPLATE)
    turns = [Message("user", "a"), Message("user", "b")]
    with pytest.raises(RequestError, match="roles must alternate"):
        render(turns, None, tokenizer, tool_syntax(tokenizer), is_constrained=False)


def test_half_a_character_from_a_tool_is_refused(base, tmp_path):
    tokenizer = tokenizer_with(base, tmp_path, QWEN)
    odd = ToolUse((Tool("f", None, {"properties": {"\ud800": {}}}, is_strict=False),), "auto", is_parallel=True)
    try:
        text = render(TURNS[:1], odd, tokenizer, tool_syntax(tokenizer), is_constrained=False)
    except RequestError:
        return
    text.encode()


def test_results_learn_the_names_of_their_calls():
    call = {"id": "c", "function": {"name": "look", "arguments": {"at": "x"}}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "y"}]
    assistant, result = parse_messages(turns)
    assert assistant.calls == (PastCall("c", "look", '{"at": "x"}'),)
    assert (result.role, result.name, result.call_id) == ("tool", "look", "c")


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, "messages[0].tool_calls[0].function.name"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[0].tool_call_id"),
        ({"role": "tool"}, "messages[0].content"),
    ],
)
def test_wrong_turns_are_refused_by_name(turn, param):
    with pytest.raises(RequestError) as caught:
        parse_messages([turn])
    assert caught.value.param == param


def test_a_template_that_shows_past_thoughts_is_given_them(base, tmp_path):
    template = "{% for message in messages %}[{{ message.reasoning_content }}|{{ message.content }}]{% endfor %}"
    tokenizer = tokenizer_with(base, tmp_path, template)
    for key in ("reasoning_content", "reasoning"):
        turns = parse_messages([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "hm"}])
        assert render(turns, None, tokenizer, tool_syntax(tokenizer), is_constrained=False) == "[|a][hm|b]"
    odd = parse_messages([{"role": "assistant", "content": "b", "reasoning": {"summary": []}}])
    assert odd[0].thoughts is None
