"""One document out of a stream."""

from __future__ import annotations

import json
from typing import Any

from runtime.gateway.adapters.collect import Collector
from tests.fakes.upstream import DONE, FINISH, ROLE, chunk_document, event, word


def collected(*events: bytes, is_chat: bool = True) -> dict[str, Any] | None:
    collector = Collector(is_chat=is_chat)
    for one in events:
        collector.feed(one)
    answer = collector.answer()
    return None if answer is None else json.loads(answer)


def message(*events: bytes) -> dict[str, Any]:
    found = collected(*events)
    assert found is not None
    said: dict[str, Any] = found["choices"][0]["message"]
    return said


def call(index: int, **function: str) -> bytes:
    piece = {"index": index, "id": f"call-{index}", "type": "function", "function": function}
    return event(chunk_document({"tool_calls": [piece]}))


def test_texts_are_joined_and_the_usage_kept() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    found = collected(
        b": keepalive 1/2\n\n", ROLE, word(0), word(1), FINISH, event({"choices": [], "usage": usage}), DONE
    )
    assert found == {
        "id": "chatcmpl-1",
        "created": 1,
        "model": "fake",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "w0 w1 "}}],
        "usage": usage,
    }


def test_reasoning_is_apart_from_the_answer() -> None:
    thought = event(chunk_document({"reasoning": "hm "}))
    assert message(thought, thought, word(0), FINISH) == {
        "role": "assistant",
        "content": "w0 ",
        "reasoning": "hm hm ",
    }


def test_tool_calls_are_put_together_by_their_index() -> None:
    said = message(
        call(0, name="f", arguments='{"a"'), call(1, name="g", arguments="{}"), call(0, arguments=": 1}"), FINISH
    )
    assert said["content"] is None
    assert [(one["id"], one["function"]) for one in said["tool_calls"]] == [
        ("call-0", {"name": "f", "arguments": '{"a": 1}'}),
        ("call-1", {"name": "g", "arguments": "{}"}),
    ]


def test_pieces_of_no_known_shape_are_passed_over() -> None:
    odd = [event({"choices": choices}) for choices in (7, "no", {"index": 0}, [7], [{"delta": {"tool_calls": 7}}])]
    assert message(*odd, word(0), FINISH) == {"role": "assistant", "content": "w0 "}


def test_texts_of_completions() -> None:
    pieces = [event({"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in "ab"]
    end = event({"id": "c", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    found = collected(*pieces, end, is_chat=False)
    assert found is not None
    assert found["object"] == "text_completion"
    assert found["choices"] == [{"index": 0, "finish_reason": "length", "text": "ab"}]


def test_a_stream_that_broke_off_gives_nothing() -> None:
    assert collected(ROLE, word(0)) is None
    assert collected() is None


def test_nonsense_is_passed_over() -> None:
    nonsense = [
        b"data: {oops\n\n",
        b"data: []\n\n",
        b'data: {"choices": [1, {"delta": 5}]}\n\n',
        b"\n\n",
        b"data: 7\n\n",
    ]
    assert message(*nonsense, word(0), FINISH)["content"] == "w0 "
