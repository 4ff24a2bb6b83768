"""OpenAI's answers in Anthropic's words: whole messages, and streams however the upstream's bytes were cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.attempt import ODD_ANSWER, BadAnswerError
from runtime.gateway.protocols.anthropic.messages import HIDDEN_DELTAS, MessageTranslation
from runtime.gateway.protocols.anthropic.request import parse_messages

USAGE = {"prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 10}}
ENABLED = {"type": "enabled", "budget_tokens": 2000}
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def translation(**fields: Any) -> MessageTranslation:
    asked = {"model": "chat", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return MessageTranslation(parse_messages(json.dumps(asked).encode()), "msg_1")


def data(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(finish: str | None = None, /, **said: Any) -> bytes:
    return data({"id": "c", "model": "m", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def piece(index: int, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, **({} if call_id is None else {"id": call_id, "type": "function"}), "function": function}


def usage(**numbers: Any) -> bytes:
    return data({"id": "c", "choices": [], "usage": {**USAGE, **numbers}})


def events_of(sent: bytes) -> list[dict[str, Any]]:
    """Read events, each a pair of lines that agree on its type."""
    events = []
    for event in sent.decode().split("\n\n")[:-1]:
        name, said = event.split("\n")
        document = json.loads(said.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        events.append(document)
    return events


def streamed(*parts: bytes, **fields: Any) -> list[dict[str, Any]]:
    made = translation(stream=True, **fields)
    return events_of(b"".join(made.feed(part) for part in parts))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("content_") for event in events]


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a message together as the SDK does, and check the order on the way."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    message: dict[str, Any] = dict(events[0]["message"])
    content: list[dict[str, Any]] = []
    open_index: int | None = None
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert open_index is None
                assert event["index"] == len(content)
                open_index = event["index"]
                content.append({**event["content_block"]})
                if content[-1]["type"] == "tool_use":
                    assert content[-1]["input"] == {}
                    content[-1]["input"] = ""
            case "content_block_delta":
                assert event["index"] == open_index
                block, said = content[-1], event["delta"]
                key = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
                if said["type"] == "input_json_delta":
                    block["input"] += said["partial_json"]
                else:
                    block[key[said["type"]]] += said[key[said["type"]]]
            case "content_block_stop":
                assert event["index"] == open_index
                open_index = None
                if content[-1]["type"] == "tool_use":
                    content[-1]["input"] = json.loads(content[-1]["input"] or "{}")
            case "message_delta":
                assert open_index is None
                message |= event["delta"] | {"usage": event["usage"]}
            case other:
                assert other == "ping"
    return {**message, "content": content}


def test_a_text_has_the_events_of_the_recorded_ones() -> None:
    said = (delta(role="assistant", content=""), delta(content="Hello"), delta(content=" there"), delta("stop"))
    events = streamed(*said, usage(), DONE)
    # As in anthropic-sdk-python's tests/lib/streaming/fixtures/basic_response.txt.
    assert kinds(events) == [
        *("message_start", "block_start", "block_delta", "block_delta", "block_stop"),
        *("message_delta", "message_stop"),
    ]
    start = events[0]["message"]
    assert {**start, "usage": None} == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "chat",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": None,
    }
    assert start["usage"]["input_tokens"] > 0
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert events[2]["delta"] == {"type": "text_delta", "text": "Hello"}
    assert events[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "output_tokens": 7,
        },
    }


CALLS = (
    delta(role="assistant", content=None),
    delta(content="I look."),
    delta(tool_calls=[piece(0, "call_a", "get_weather", "")]),
    delta(tool_calls=[piece(0, arguments='{"pla')]),
    delta(tool_calls=[piece(0, arguments='ce": "Paris"}')]),
    delta(tool_calls=[piece(1, "call_b", "get_time", "{}")]),
    delta("tool_calls"),
    usage(),
    DONE,
)


def test_calls_are_blocks_with_pieces_of_json() -> None:
    events = streamed(*CALLS)
    # As in tests/lib/streaming/fixtures/tool_use_response.txt.
    assert kinds(events) == [
        "message_start",
        *("block_start", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_stop"),
        *("message_delta", "message_stop"),
    ]
    message = assembled(events)
    assert message["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_a", "name": "get_weather", "input": {"place": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "get_time", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"


def test_calls_of_servers_that_give_them_all_one_index_or_no_id_or_an_object_are_told_apart() -> None:
    one_index = streamed(
        delta(tool_calls=[piece(0, "a", "f", '{"x": 1}'), piece(0, "b", "g", "{}")]), delta("stop"), usage(), DONE
    )
    found = [(block["id"], block["name"], block["input"]) for block in assembled(one_index)["content"]]
    assert found == [("a", "f", {"x": 1}), ("b", "g", {})]
    assert assembled(one_index)["stop_reason"] == "tool_use"
    bare = {"function": {"name": "f", "arguments": {"x": 1}}}
    (block,) = assembled(streamed(delta(tool_calls=[bare]), delta("tool_calls"), DONE))["content"]
    assert (block["id"], block["input"]) == ("toolu_1_0", {"x": 1})


def test_a_call_begins_with_its_name_wherever_that_comes() -> None:
    late = (delta(tool_calls=[piece(0, "a", arguments="{")]), delta(tool_calls=[piece(0, name="f", arguments="}")]))
    (block,) = assembled(streamed(*late, delta("tool_calls"), DONE))["content"]
    assert (block["name"], block["input"]) == ("f", {})


def test_calls_that_make_no_sense_are_bad_answers() -> None:
    made = translation(stream=True)
    made.feed(delta(tool_calls=[piece(0, "a", "f", "{}")]) + delta(tool_calls=[piece(1, "b", "g", "{")]))
    with pytest.raises(BadAnswerError):
        made.feed(delta(tool_calls=[piece(0, arguments="more")]))
    nameless = translation(stream=True)
    nameless.feed(delta(tool_calls=[piece(0, "a", arguments="{}")]))
    with pytest.raises(BadAnswerError):
        nameless.feed(delta("tool_calls"))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_is_a_signed_block_of_its_own_for_who_asked(key: str) -> None:
    said = (delta(**{key: "hm"}), delta(**{key: ", yes"}), delta(content="Yes."), delta("stop"), usage(), DONE)
    message = assembled(streamed(*said, thinking=ENABLED))
    thinking, text = message["content"]
    assert thinking["type"] == "thinking"
    assert thinking["thinking"] == "hm, yes"
    assert thinking["signature"]
    assert text == {"type": "text", "text": "Yes."}
    assert assembled(streamed(*said))["content"] == [{"type": "text", "text": "Yes."}]
    hidden = assembled(streamed(*said, thinking={**ENABLED, "display": "omitted"}))
    assert hidden["content"] == [{"type": "text", "text": "Yes."}]


def test_hidden_thinking_shows_life() -> None:
    events = streamed(*[delta(reasoning_content="hm")] * (2 * HIDDEN_DELTAS), delta(content="x"), delta("stop"), DONE)
    assert kinds(events).count("ping") == 2


@pytest.mark.parametrize(
    ("finish", "more", "reason", "sequence"),
    [
        ("stop", {}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("tool_calls", {}, "tool_use", None),
        ("function_call", {}, "tool_use", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"matched_stop": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": 128009}, "end_turn", None),
        ("stop", {"stop_reason": "other"}, "end_turn", None),
        ("something new", {}, "end_turn", None),
    ],
)
def test_reasons_for_the_end(finish: str, more: dict[str, Any], reason: str, sequence: str | None) -> None:
    last = {"index": 0, "delta": {}, "finish_reason": finish, **more}
    fields = {"stop_sequences": ["END"]}
    message = assembled(streamed(delta(content="x"), data({"choices": [last]}), DONE, **fields))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    choice = {"message": {"role": "assistant", "content": "x"}, "finish_reason": finish, **more}
    whole = json.loads(translation(**fields).whole(json.dumps({"choices": [choice]}).encode()))
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)


def test_a_refusal_is_text_and_a_reason() -> None:
    message = assembled(streamed(delta(refusal="I will not."), delta("stop"), usage(), DONE))
    assert message["content"] == [{"type": "text", "text": "I will not."}]
    assert message["stop_reason"] == "refusal"


def test_an_answer_that_says_nothing_has_no_content() -> None:
    assert assembled(streamed(delta(role="assistant", content=""), delta("stop"), usage(), DONE))["content"] == []


def test_waiting_clients_get_the_beginning_and_pings() -> None:
    events = streamed(KEEP_ALIVE, KEEP_ALIVE, delta(content="x"), delta("stop"), usage(), DONE)
    assert kinds(events)[:4] == ["message_start", "ping", "ping", "block_start"]
    assembled(events)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "broke off", "type": "server_error", "code": "upstream_error"}, "api_error"),
        ({"message": "nobody", "type": "server_error", "code": "no_endpoint_available"}, "overloaded_error"),
        ({"message": "slow down", "type": "rate_limit_error"}, "rate_limit_error"),
        ("odd", "api_error"),
    ],
)
def test_an_error_is_the_last_event(error: Any, kind: str) -> None:
    events = streamed(delta(content="x"), data({"error": error}), delta(content="y"), DONE)
    assert kinds(events) == ["message_start", "block_start", "block_delta", "error"]
    assert events[-1]["error"]["type"] == kind
    assert events[-1]["error"]["message"]
    assert kinds(streamed(data({"error": error}))) == ["error"], "nothing has begun"


def test_what_belongs_to_nobody_is_passed_over() -> None:
    odd = (data([]), b"data: {\n\n", data({"choices": 5}), data({"choices": [5]}), data({"choices": [{"index": 0}]}))
    other = data({"choices": [{"index": 1, "delta": {"content": "another choice"}}]})
    strange = delta(content=[1], tool_calls=5, reasoning_content={})
    message = assembled(streamed(*odd, other, strange, delta(content="x"), delta("stop"), usage(), DONE))
    assert message["content"] == [{"type": "text", "text": "x"}]


def test_a_usage_keeps_its_mark_and_tells_of_thinking() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 3}, "estimated": True}
    told = assembled(streamed(delta(content="x"), delta("stop"), usage(**details), DONE))["usage"]
    assert told["output_tokens_details"] == {"thinking_tokens": 3}
    assert told["estimated"] is True
    assert assembled(streamed(delta(content="x"), delta("stop"), DONE))["usage"]["estimated"] is True


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_arguments_with_numbers_that_are_no_json_are_told_as_written(number: str) -> None:
    written = f'{{"x": {number}}}'
    for arguments in (json.dumps(written), written):
        call = f'{{"id": "a", "type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
        raw = f'{{"choices": [{{"message": {{"tool_calls": [{call}]}}, "finish_reason": "tool_calls"}}]}}'
        (block,) = json.loads(translation().whole(raw.encode()), parse_constant=pytest.fail)["content"]
        assert list(block["input"]) == ["INVALID_JSON"]


def test_a_whole_answer() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"id": "c", "type": "function", "function": {"name": "h", "arguments": '{"x": '}},
    ]
    said = {"role": "assistant", "content": "So.", "reasoning_content": "hm", "tool_calls": calls}
    raw = json.dumps({"choices": [{"message": said, "finish_reason": "tool_calls"}], "usage": USAGE}).encode()
    message = json.loads(translation(thinking=ENABLED).whole(raw))
    kinds_found = [block["type"] for block in message["content"]]
    assert kinds_found == ["thinking", "text", "tool_use", "tool_use", "tool_use"]
    assert [block["input"] for block in message["content"][2:]] == [{"x": 1}, {}, {"INVALID_JSON": '{"x": '}]
    assert message["content"][3]["id"] == "toolu_1_1"
    assert {key: message[key] for key in ("id", "type", "role", "model", "stop_reason", "stop_sequence")} == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "chat",
        "stop_reason": "tool_use",
        "stop_sequence": None,
    }
    assert message["usage"]["input_tokens"] == 20
    assert json.loads(translation().whole(raw))["content"][0]["type"] == "text"


@pytest.mark.parametrize(("more", "expected"), [({"timings": {}}, "isa"), ({}, "The tower of Pisa")])
def test_the_beginning_that_llama_cpp_gives_back_is_taken_off(more: dict[str, Any], expected: str) -> None:
    begun = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "The tower of P"}]
    choice = {"message": {"role": "assistant", "content": "The tower of Pisa"}, "finish_reason": "stop"}
    raw = json.dumps({"choices": [choice], "usage": USAGE, **more}).encode()
    (block,) = json.loads(translation(messages=begun).whole(raw))["content"]
    assert block["text"] == expected


@pytest.mark.parametrize(
    "document",
    [{}, [], None, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 5}]}, {"choices": {}},
     {"choices": [{"message": {"tool_calls": [{}]}}]}, {"choices": [{"message": {"tool_calls": 5}}]},
     {"choices": [{"message": {"tool_calls": [{"function": {"name": "", "arguments": "{}"}}]}}]},
     {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": 5}}]}}]}],
)  # fmt: skip
def test_what_is_no_answer_is_a_bad_one(document: Any) -> None:
    with pytest.raises((BadAnswerError, *ODD_ANSWER)):
        translation().whole(json.dumps(document).encode())


KEYS = ("choices", "delta", "index", "tool_calls", "function", "name", "content", "usage", "error")
texts = st.text(max_size=6)
answers = st.lists(
    st.one_of(
        st.builds(lambda text: ("content", text), texts),
        st.builds(lambda text: ("reasoning_content", text), texts),
        st.builds(lambda text: ("call", text), texts),
        st.just(("wait", "")),
    ),
    max_size=8,
)


def upstream_of(said: list[tuple[str, str]]) -> tuple[bytes, list[dict[str, Any]]]:
    """Return an upstream's bytes for an answer, and the content that it has in Anthropic's words."""
    parts, content, number = [KEEP_ALIVE, delta(role="assistant", content="")], [], 0
    for kind, text in said:
        if kind == "wait":
            parts.append(KEEP_ALIVE)
        elif kind == "call":
            arguments = json.dumps({"text": text})
            halves = arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]
            parts.append(delta(tool_calls=[piece(number, f"id{number}", "f", "")]))
            parts.extend(delta(tool_calls=[piece(number, arguments=half)]) for half in halves)
            content.append({"type": "tool_use", "id": f"id{number}", "name": "f", "input": {"text": text}})
            number += 1
        else:
            parts.append(delta(**{kind: text}))
            key = "text" if kind == "content" else "thinking"
            if text and content and content[-1]["type"] == key:
                content[-1][key] += text
            elif text:
                content.append({"type": key, key: text})
    return b"".join([*parts, delta("stop"), usage(), DONE]), content


@settings(max_examples=60, deadline=None)
@given(said=answers, cuts=st.lists(st.integers(0, 4000), max_size=6), ends=st.sampled_from([b"\n", b"\r\n"]))
def test_any_split_of_the_upstreams_bytes_gives_the_same_events_in_order(
    said: list[tuple[str, str]], cuts: list[int], ends: bytes
) -> None:
    raw, content = upstream_of(said)
    raw = raw.replace(b"\n", ends)
    whole = translation(stream=True, thinking=ENABLED).feed(raw)
    framer, made, sent = sse.Framer(), translation(stream=True, thinking=ENABLED), b""
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    for start, end in pairwise(places):
        sent += made.feed(framer.feed(raw[start:end]))
    assert framer.rest() == b""
    assert sent == whole
    message = assembled(events_of(sent))
    for block in message["content"]:
        block.pop("signature", None)
    assert message["content"] == content


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 2) | texts,
            lambda inner: st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=3,
            ),
            max_leaves=12,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_no_event_is_more_than_a_bad_answer(documents: list[Any]) -> None:
    made = translation(stream=True, thinking=ENABLED)
    try:
        events = events_of(b"".join(made.feed(data(document)) for document in documents) + made.feed(DONE))
    except (BadAnswerError, *ODD_ANSWER):
        return
    if events[-1]["type"] != "error":
        assert events[-1]["type"] == "message_stop"
