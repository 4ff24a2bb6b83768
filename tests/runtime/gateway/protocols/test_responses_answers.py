"""Answers of the Responses API: whole ones, and streams of typed events, however the network splits them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.protocols.responses.answer import Responses
from runtime.gateway.protocols.responses.request import parse_response
from tests.fakes.upstream import DONE, FINISH, ROLE, chunk_document, event, word

ASKED: dict[str, Any] = {
    "model": "chat",
    "input": "hi",
    "instructions": "be brief",
    "metadata": {"a": "b"},
    "store": True,
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "stream": True,
}
COMMENT = b": keep-alive\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}})
ERROR = event({"error": {"message": "it broke", "type": "server_error", "code": "upstream_error"}})
THINKING = event(chunk_document({"reasoning_content": "hm "}))
REFUSAL = event(chunk_document({"refusal": "no"}))
LENGTH = event(chunk_document({}, "length"))
UNICODE = event(chunk_document({"content": "größer 🚀\n\ndata: "}))


def call(index: int, call_id: str | None, name: str | None, arguments: str | None, **more: Any) -> bytes:
    function = {"name": name, "arguments": arguments}
    piece = {"index": index, "id": call_id, "function": {key: value for key, value in function.items() if value}}
    return event(chunk_document({"tool_calls": [piece | more]}))


CALLS = (call(0, "c1", "f", None), call(0, None, None, '{"a"'), call(0, None, None, ":1}"), call(1, "c2", "g", "{}"))


def translation() -> Responses:
    _, head = parse_response(json.dumps(ASKED).encode(), "resp_ab", 7)
    return Responses(head, lambda: 9.5)


def read(written: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, with what all of them must have checked."""
    events = []
    for block in written.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        kind, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {document['type']}"
        events.append(document)
    return events


def streamed(*pieces: bytes) -> list[dict[str, Any]]:
    answer = translation()
    return read(b"".join(answer.feed(piece) for piece in pieces))


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Check what holds for every stream, and return the response at its end.

    The response at the end is made of the events as a client does it, and compared.
    """
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    kinds = [each["type"] for each in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in {"response.completed", "response.incomplete", "response.failed"}
    assert sum(kind in {"response.completed", "response.incomplete", "response.failed"} for kind in kinds) == 1
    items: list[dict[str, Any]] = []
    is_open: dict[int, bool] = {}
    for each in events[2:-1]:
        place = each["output_index"]
        match each["type"]:
            case "response.output_item.added":
                assert place == len(items) and each["item"]["status"] == "in_progress"
                items.append(json.loads(json.dumps(each["item"])))
                is_open[place] = True
            case "response.output_item.done":
                assert is_open.pop(place)
                assert each["item"] == {**items[place], "status": each["item"]["status"]}
                items[place]["status"] = each["item"]["status"]
            case "response.content_part.added":
                assert is_open[place] and each["item_id"] == items[place]["id"]
                assert each["content_index"] == len(items[place]["content"])
                items[place]["content"].append(each["part"])
            case "response.content_part.done":
                assert each["part"] == items[place]["content"][each["content_index"]]
            case "response.function_call_arguments.delta":
                items[place]["arguments"] += each["delta"]
            case "response.function_call_arguments.done":
                assert each["arguments"] == items[place]["arguments"] and each["name"] == items[place]["name"]
            case "response.output_text.delta" | "response.reasoning_text.delta":
                part = items[place]["content"][each["content_index"]]
                part["text"] += each["delta"]
                part.get("logprobs", []).extend(each.get("logprobs", []))
            case "response.refusal.delta":
                items[place]["content"][each["content_index"]]["refusal"] += each["delta"]
            case "response.output_text.done" | "response.reasoning_text.done":
                assert each["text"] == items[place]["content"][each["content_index"]]["text"]
            case "response.refusal.done":
                assert each["refusal"] == items[place]["content"][each["content_index"]]["refusal"]
            case kind:
                raise AssertionError(f"an unknown event {kind}")
    assert not is_open, "everything that was added is done"
    response: dict[str, Any] = events[-1]["response"]
    assert response["output"] == items
    assert response["id"] == events[0]["response"]["id"]
    return response


def test_a_text_is_told_event_by_event() -> None:
    events = streamed(COMMENT, ROLE, word(0), word(1), FINISH, USAGE, DONE)
    assert [each["type"].removeprefix("response.") for each in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    response = check(events)
    assert response["output"][0]["content"][0]["text"] == "w0 w1 "
    assert response["status"] == "completed" and response["completed_at"] == 9
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }


def test_what_was_asked_is_told_back_and_nothing_is_stored() -> None:
    response = check(streamed(word(0), FINISH, DONE))
    assert {"id": "resp_ab", "object": "response", "created_at": 7, "model": "chat", "error": None}.items() <= (
        response.items()
    )
    assert response["instructions"] == "be brief" and response["metadata"] == {"a": "b"}
    assert response["store"] is False and response["previous_response_id"] is None
    assert response["tool_choice"] == "auto" and response["parallel_tool_calls"] is True
    (tool,) = response["tools"]
    assert tool == {"description": None, "strict": None, **ASKED["tools"][0]}


def test_reasoning_text_and_calls_are_items_in_their_order() -> None:
    response = check(streamed(ROLE, THINKING, THINKING, word(0), *CALLS, event(chunk_document({}, "tool_calls")), DONE))
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm hm "}]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in response["output"][2:]] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", "{}"),
    ]
    assert len({item["id"] for item in response["output"]}) == 4
    assert response["status"] == "completed"


def test_an_answer_that_was_cut_by_its_limit_is_incomplete() -> None:
    response = check(streamed(ROLE, THINKING, word(0), LENGTH, USAGE, DONE))
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["completed_at"] is None


@pytest.mark.parametrize("before", [(), (ROLE, word(0)), (ROLE, *CALLS)])
def test_an_error_ends_the_stream_as_a_failure(before: tuple[bytes, ...]) -> None:
    response = check(streamed(COMMENT, *before, ERROR))
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "it broke"}


def test_clients_are_told_by_its_code_that_a_prompt_is_too_long() -> None:
    error = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    assert check(streamed(event({"error": error})))["error"]["code"] == "context_length_exceeded"


def test_nothing_follows_the_end() -> None:
    answer = translation()
    answer.feed(word(0) + FINISH + DONE)
    assert answer.feed(ERROR + word(1)) == b""


def test_an_event_that_makes_no_sense_leaves_no_gap() -> None:
    answer = translation()
    written = answer.feed(ROLE + word(0))
    with pytest.raises(BadAnswerError):
        answer.feed(word(1) + call(0, None, None, "{}"))
    check(read(written + answer.feed(ERROR)))


def test_calls_that_are_all_numbered_alike_are_told_apart() -> None:
    response = check(streamed(call(0, "c1", "f", "{}"), call(0, "c2", "f", "{}"), FINISH, DONE))
    assert [item["call_id"] for item in response["output"]] == ["c1", "c2"]
    unnumbered = [
        event(chunk_document({"tool_calls": [{"function": {"name": name, "arguments": {}}}]})) for name in "ab"
    ]
    response = check(streamed(*unnumbered, FINISH, DONE))
    assert [(item["name"], item["arguments"]) for item in response["output"]] == [("a", "{}"), ("b", "{}")]
    assert len({item["call_id"] for item in response["output"]}) == 2


def test_log_probabilities_come_with_their_text() -> None:
    said = {
        "token": "w",
        "logprob": -0.5,
        "bytes": [119],
        "top_logprobs": [{"token": "v", "logprob": -1, "bytes": None}],
    }
    document = chunk_document({"content": "w"})
    document["choices"][0]["logprobs"] = {"content": [said]}
    events = streamed(event(document), FINISH, DONE)
    response = check(events)
    expected = [{**said, "top_logprobs": [{"token": "v", "logprob": -1, "bytes": [118]}]}]
    assert response["output"][0]["content"][0]["logprobs"] == expected


PIECES = [
    ROLE,
    COMMENT,
    THINKING,
    REFUSAL,
    UNICODE,
    *CALLS,
    word(0),
    word(1),
    USAGE,
    event({"choices": [{"delta": 3}]}),
]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=10)
ENDS = st.sampled_from([FINISH + DONE, LENGTH + USAGE + DONE, DONE, ERROR])


@given(STREAMS, ENDS, st.lists(st.integers(0, 2000), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_split_of_the_bytes_gives_the_same_events(pieces: list[bytes], end: bytes, cuts: list[int]) -> None:
    # A call begins with its name.
    starts = [CALLS[0], CALLS[3]]
    whole = b"".join([*starts, *pieces, end])
    framer, answer, written = sse.Framer(), translation(), b""
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    for start, stop in pairwise(places):
        written += answer.feed(framer.feed(whole[start:stop]))
    assert written == translation().feed(whole)
    check(read(written))


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant"} | message}
    document = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "estimated": True}}
    found: dict[str, Any] = json.loads(translation().whole(json.dumps(document | more).encode()))
    return found


def test_a_whole_answer_says_the_same_as_a_stream() -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}]
    calls.append({"id": "c2", "function": {"name": "g", "arguments": "{}"}})
    found = whole({"content": "w0 ", "reasoning_content": "hm ", "tool_calls": calls})
    events = check(streamed(THINKING, word(0), *CALLS, FINISH, DONE))
    assert found["output"] == events["output"]
    assert {**found, "usage": None} == {**events, "usage": None}
    assert found["usage"]["total_tokens"] == 8 and found["usage"]["estimated"] is True


def test_a_whole_answer_that_says_nothing_is_an_empty_text() -> None:
    found = whole({"content": None}, "length")
    assert found["status"] == "incomplete"
    assert found["output"] == check(streamed(ROLE, LENGTH, DONE))["output"]


@pytest.mark.parametrize("document", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "x"}]}])
def test_what_is_no_chat_completion_is_a_bad_answer(document: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError):
        translation().whole(json.dumps(document).encode())
