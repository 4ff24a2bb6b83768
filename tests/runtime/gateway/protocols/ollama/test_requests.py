"""Requests of Ollama's clients become OpenAI's, and what cannot be said is refused by the name that the client used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.ollama import fields, requests

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "chat:latest", "messages": [USER], "stream": False}
PROMPT: dict[str, Any] = {"model": "chat", "prompt": "once", "stream": False}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
JPEG = "/9j/4AAQSkZJRgABAQAAAQABAAD/2Q=="


def chatted(**more: Any) -> dict[str, Any]:
    """Return what is sent for a chat."""
    wish = requests.chat({**CHAT, **more}, "chat")
    assert isinstance(wish, requests.Generation)
    assert wish.path == "/v1/chat/completions"
    assert json.loads(wish.body.raw) == wish.body.document
    return dict(wish.body.document)


def prompted(path: str = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
    """Return what is sent for a prompt."""
    wish = requests.generate({**PROMPT, **more}, "chat")
    assert isinstance(wish, requests.Generation)
    assert wish.path == path
    return dict(wish.body.document)


def test_a_chat_keeps_its_messages_and_gets_the_served_name() -> None:
    assert chatted() == {"model": "chat", "messages": [USER]}
    messages = [{"role": "SYSTEM", "content": "s"}, USER, {"role": "assistant", "content": "yes"}, USER]
    assert [message["role"] for message in chatted(messages=messages)["messages"]] == [
        *("system", "user", "assistant", "user")
    ]


def test_a_stream_is_the_default() -> None:
    for document in ({"model": "chat", "messages": [USER]}, {**CHAT, "stream": None}, {**CHAT, "stream": True}):
        wish = requests.chat(document, "chat")
        assert isinstance(wish, requests.Generation)
        assert wish.body.is_stream
        assert wish.body.document["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"temperature": 0, "top_p": 0.5, "seed": 7}, {"temperature": 0, "top_p": 0.5, "seed": 7}),
        ({"top_k": 40.0, "min_p": 0.1}, {"top_k": 40, "min_p": 0.1}),
        ({"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "seed": -1}, {}),
        ({"num_predict": 12}, {"max_tokens": 12}),
        ({"num_predict": -1}, {}),
        ({"num_predict": -2}, {}),
        ({"num_predict": 0}, {}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (
            {"presence_penalty": 1, "frequency_penalty": -1.5},
            {"presence_penalty": 1, "frequency_penalty": -1.5},
        ),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": []}, {}),
        ({"typical_p": 1.0, "tfs_z": 1, "mirostat": 0}, {}),
        ({"num_ctx": 8192, "num_gpu": -1, "num_thread": 4, "use_mmap": True, "num_keep": 5, "repeat_last_n": 64}, {}),
        ({"temperature": None, "stop": None, "whatever": [1]}, {}),
        (None, {}),
    ],
)
def test_options_become_parameters(options: dict[str, Any] | None, made: dict[str, Any]) -> None:
    document = chatted(options=options)
    assert {key: value for key, value in document.items() if key not in ("model", "messages")} == made


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": SCHEMA},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "format", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"format": ""}, {}),
        ({"format": None}, {}),
        ({"think": True}, {"reasoning_effort": "medium"}),
        ({"think": False}, {"reasoning_effort": "none"}),
        ({"think": "low"}, {"reasoning_effort": "low"}),
        ({"think": "max"}, {"reasoning_effort": "high"}),
        ({"think": None}, {}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 3}, {}),
        ({"keep_alive": "5m"}, {}),
        ({"keep_alive": -1}, {}),
        ({"truncate": True, "shift": False}, {}),
        ({"tools": []}, {}),
        ({"tools": None}, {}),
        ({"unknown": {"a": 1}}, {}),
    ],
)
def test_what_stands_beside_the_options(more: dict[str, Any], made: dict[str, Any]) -> None:
    for document in (chatted(**more), prompted(**{key: value for key, value in more.items() if key != "tools"})):
        assert {key: value for key, value in document.items() if key not in ("model", "messages")} == made


def test_thinking_is_refused_where_the_model_is_known_not_to_think() -> None:
    with pytest.raises(ApiError, match="'chat:latest' does not support thinking") as refused:
        requests.chat({**CHAT, "think": True}, "chat", thinks=False)
    assert refused.value.param == "think"
    quiet = requests.chat({**CHAT, "think": False}, "chat", thinks=False)
    assert isinstance(quiet, requests.Generation)
    assert "reasoning_effort" not in quiet.body.document, "not to think is nothing that it has to be told"


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def test_tools_pass_and_need_not_say_that_they_are_functions() -> None:
    assert chatted(tools=[TOOL, {"function": TOOL["function"]}])["tools"] == [TOOL, TOOL]


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


def test_arguments_of_past_calls_become_texts_and_results_find_their_calls() -> None:
    messages = [
        USER,
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [call("add", {"a": 1}), call("mul", {}), call("add", {"a": 2}), call("sub", {}, id="mine")],
        },
        {"role": "tool", "content": "6", "tool_name": "mul"},
        {"role": "tool", "content": "1", "tool_name": "add"},
        {"role": "tool", "content": "9", "tool_call_id": "mine"},
        {"role": "tool", "content": "2"},
    ]
    said = chatted(messages=messages)["messages"]
    assert said[1]["reasoning_content"] == "hm"
    ids = [each["id"] for each in said[1]["tool_calls"]]
    assert len(set(ids)) == 4
    assert all(len(each) == 9 and each.isalnum() for each in ids[:3]), "the form that Mistral's templates take"
    assert [json.loads(each["function"]["arguments"]) for each in said[1]["tool_calls"]] == [{"a": 1}, {}, {"a": 2}, {}]
    assert [each["tool_call_id"] for each in said[2:]] == [ids[1], ids[0], "mine", ids[2]]
    assert said[2] == {"role": "tool", "content": "6", "tool_call_id": ids[1], "name": "mul"}


def test_a_result_whose_call_was_left_out_gets_a_call_to_name() -> None:
    said = chatted(messages=[USER, {"role": "tool", "content": "1", "tool_name": "f"}])["messages"]
    assert said[1] == {"role": "tool", "content": "1", "tool_call_id": "call00001", "name": "f"}


def test_many_calls_and_results_take_no_longer_than_their_number() -> None:
    calls = [call(f"f{index}", {}) for index in range(4_000)]
    results = [{"role": "tool", "content": "x", "tool_name": f"f{index}"} for index in reversed(range(4_000))]
    said = chatted(messages=[{"role": "assistant", "tool_calls": calls}, *results])["messages"]
    ids = [each["id"] for each in said[0]["tool_calls"]]
    assert [each["tool_call_id"] for each in said[1:]] == ids[::-1]


def test_pictures_become_parts_with_data_urls() -> None:
    url = f"data:image/png;base64,{PNG}"
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}"}},
    ]
    message = {"role": "user", "content": "what?", "images": [PNG, JPEG]}
    assert chatted(messages=[message])["messages"] == [{"role": "user", "content": parts}]
    assert prompted(prompt="what?", images=[url, JPEG])["messages"] == [{"role": "user", "content": parts}]
    assert chatted(messages=[{**USER, "images": []}])["messages"] == [USER]


def test_a_prompt_is_a_chat_of_one_message() -> None:
    assert prompted() == {"model": "chat", "messages": [{"role": "user", "content": "once"}]}
    assert prompted(system="be brief")["messages"][0] == {"role": "system", "content": "be brief"}
    assert prompted(template="", context=[], raw=False)["messages"] == [{"role": "user", "content": "once"}]


def test_a_raw_prompt_and_one_with_a_suffix_are_texts_to_go_on_with() -> None:
    assert prompted("/v1/completions", raw=True) == {"model": "chat", "prompt": "once"}
    assert prompted("/v1/completions", suffix="end") == {"model": "chat", "prompt": "once", "suffix": "end"}
    assert prompted("/v1/completions", raw=True, logprobs=True, top_logprobs=2)["logprobs"] == 2


@pytest.mark.parametrize("nothing", [{}, {"messages": None}, {"messages": []}])
def test_a_chat_without_messages_asks_for_the_model_to_be_loaded_or_dropped(nothing: dict[str, Any]) -> None:
    assert requests.chat({"model": "chat", **nothing}, "chat") == "load"
    assert requests.chat({"model": "chat", **nothing, "keep_alive": "10m"}, "chat") == "load"
    for zero in (0, "0", "0s", 0.0):
        assert requests.chat({"model": "chat", **nothing, "keep_alive": zero}, "chat") == "unload"


@pytest.mark.parametrize("nothing", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": "", "system": "s"}])
def test_an_empty_prompt_asks_for_the_model_to_be_loaded_or_dropped(nothing: dict[str, Any]) -> None:
    assert requests.generate({"model": "chat", **nothing}, "chat") == "load"
    assert requests.generate({"model": "chat", **nothing, "keep_alive": 0}, "chat") == "unload"


BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": 3}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
    ({"messages": [{**USER, "images": "x"}]}, "messages[0].images"),
    ({"messages": [{**USER, "images": ["https://example.com/a.png"]}]}, "messages[0].images[0]"),
    ({"messages": [{**USER, "images": [PNG, "no base64!"]}]}, "messages[0].images[1]"),
    ({"messages": [{**USER, "images": ["aGVsbG8="]}]}, "messages[0].images[0]"),
    ({"messages": [{**USER, "images": [7]}]}, "messages[0].images[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function.name"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [call("f", "{}")]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "assistant", "content": "", "thinking": 1}]}, "messages[0].thinking"),
    ({"messages": [{**USER, "thinking": 1}]}, "messages[0].thinking"),
    ({"messages": [{**USER, "tool_calls": 1}]}, "messages[0].tool_calls"),
    ({"messages": [{**USER, "tool_name": 1}]}, "messages[0].tool_name"),
    ({"messages": [{**USER, "tool_call_id": 1}]}, "messages[0].tool_call_id"),
    ({"tools": {}}, "tools"),
    ({"tools": ["x"]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"function": {"name": ""}}]}, "tools[0].function"),
]
BAD_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"stream": "yes"}, "stream"),
    ({"format": "xml"}, "format"),
    ({"format": [1]}, "format"),
    ({"think": "hard"}, "think"),
    ({"think": 1}, "think"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": "x"}, "top_logprobs"),
    ({"options": {"temperature": 10**400}}, "options.temperature"),
    ({"options": {"num_predict": 10**400}}, "options.num_predict"),
    ({"options": {"seed": 1 << 63}}, "options.seed"),
    ({"options": {"top_k": 1e300}}, "options.top_k"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"keep_alive": "5"}, "keep_alive"),
    ({"keep_alive": True}, "keep_alive"),
    ({"keep_alive": []}, "keep_alive"),
    ({"truncate": 1}, "truncate"),
    ({"shift": "x"}, "shift"),
    ({"_debug_render_only": True}, "_debug_render_only"),
    ({"options": []}, "options"),
    ({"options": {"temperature": "hot"}}, "options.temperature"),
    ({"options": {"temperature": True}}, "options.temperature"),
    ({"options": {"top_k": 1.5}}, "options.top_k"),
    ({"options": {"seed": "x"}}, "options.seed"),
    ({"options": {"num_predict": [1]}}, "options.num_predict"),
    ({"options": {"repeat_penalty": {}}}, "options.repeat_penalty"),
    ({"options": {"stop": [1]}}, "options.stop"),
    ({"options": {"stop": {}}}, "options.stop"),
    ({"options": {"mirostat": 2}}, "options.mirostat"),
    ({"options": {"typical_p": 0.5}}, "options.typical_p"),
]
BAD_PROMPT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ["x"]}, "prompt"),
    ({"system": 1}, "system"),
    ({"suffix": 1}, "suffix"),
    ({"raw": "x"}, "raw"),
    ({"template": "{{ .Prompt }}"}, "template"),
    ({"context": [1, 2]}, "context"),
    ({"context": "x"}, "context"),
    ({"raw": True, "system": "s"}, "system"),
    ({"raw": True, "think": "x"}, "think"),
    ({"raw": True, "images": [PNG]}, "images"),
    ({"images": ["http://10.0.0.1/a.png"]}, "images[0]"),
]


def refused_of(understand: Any, document: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        understand(document, "chat")
    return refused.value


@pytest.mark.parametrize(("more", "param"), [*BAD_CHAT, *BAD_BOTH])
def test_a_bad_chat_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    error = refused_of(requests.chat, {**CHAT, **more})
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(("more", "param"), BAD_BOTH)
def test_a_wish_to_load_is_read_as_strictly(more: dict[str, Any], param: str) -> None:
    for understand in (requests.chat, requests.generate):
        assert refused_of(understand, {"model": "chat", **more}).param == param


@pytest.mark.parametrize(("more", "param"), [*BAD_PROMPT, *BAD_BOTH])
def test_a_bad_prompt_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    error = refused_of(requests.generate, {**PROMPT, **more})
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message


def test_a_duration_that_is_made_to_hurt_is_refused_at_once() -> None:
    for text in ("0" * 1_000_000 + "!", "1." * 500_000 + "!", "1s" * 500_000 + "!"):
        assert refused_of(requests.chat, {**CHAT, "keep_alive": text}).param == "keep_alive"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((0, 0), (300, 300), (-1, -1), (1.5, 1.5), ("5m", 300), ("1h30m", 5400), ("-1", None), ("-1s", -1), ("0", 0)),
        *(("500ms", 0.5), ("24h", 86400), ("", None), ("m", None), ("1 m", None), ("1d", None)),
        *(("-0", 0), ("00", None), ("01s", 1), ("1h0", None), ("0" * 64 + "s", None), ("٣s", None), (10**400, None)),
    ],
)
def test_durations_are_those_of_go(value: object, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(ApiError):
            fields.keep_alive_s({"keep_alive": value})
    else:
        assert fields.keep_alive_s({"keep_alive": value}) == pytest.approx(seconds)


def test_texts_to_embed() -> None:
    body = requests.embed({"model": "e:latest", "input": "a", "dimensions": 4}, "e")
    assert body is not None
    asked = {"model": "e", "input": ["a"], "encoding_format": "float", "truncate": True}
    assert body.document == {**asked, "dimensions": 4}
    body = requests.embed({"model": "e", "input": ["a", "b"], "truncate": False, "options": {"num_ctx": 5}}, "e")
    assert body is not None
    assert body.document == {"model": "e", "input": ["a", "b"], "encoding_format": "float"}
    body = requests.embeddings({"model": "e", "prompt": "a", "keep_alive": "5m"}, "e")
    assert body is not None
    assert body.document["input"] == ["a"]


def test_empty_texts_of_a_list_are_texts() -> None:
    for texts in ([""], ["a", ""]):
        body = requests.embed({"model": "e", "input": texts}, "e")
        assert body is not None and body.document["input"] == texts


def test_nothing_to_embed_is_a_wish_for_the_model_to_be_loaded() -> None:
    for nothing in ({}, {"input": None}, {"input": ""}, {"input": []}):
        assert requests.embed({"model": "e", **nothing}, "e") is None
    for nothing in ({}, {"prompt": None}, {"prompt": ""}):
        assert requests.embeddings({"model": "e", **nothing}, "e") is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        *(({"input": 3}, "input"), ({"input": {}}, "input"), ({"input": ["a", 1]}, "input[1]")),
        *(({"input": [[1, 2]]}, "input[0]"), ({"input": ["", None]}, "input[1]"), ({"truncate": 1}, "truncate")),
        *(({"dimensions": "x"}, "dimensions"), ({"dimensions": -1}, "dimensions"), ({"options": 1}, "options")),
        ({"keep_alive": "x"}, "keep_alive"),
    ],
)
def test_bad_texts_to_embed_are_refused_by_name(more: dict[str, Any], param: str) -> None:
    error = refused_of(requests.embed, {"model": "e", "input": "a", **more})
    assert (error.status, error.param) == (400, param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *("messages", "prompt", "system", "suffix", "raw", "images", "format", "options", "stream", "keep_alive"),
        *("think", "context", "template", "tools", "logprobs", "top_logprobs", "truncate", "shift", "input"),
        *("dimensions", "_debug_render_only"),
    ]
)


@settings(max_examples=50)
@given(st.dictionaries(KEYS, JSON, max_size=4), st.sampled_from(["chat", "generate", "embed", "embeddings"]))
def test_whatever_is_sent_is_understood_or_refused(more: dict[str, Any], name: str) -> None:
    try:
        getattr(requests, name)({"model": "m", **more}, "m")
    except ApiError as error:
        assert error.status == 400
        assert error.param is not None
