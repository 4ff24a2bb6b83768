"""Several answers made one, and whole answers made streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.adapters.collect import Collector
from runtime.gateway.adapters.emulation.choices import added, joined, streamed, with_first_call
from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.sse import event_data, split_events

TEXTS = st.text(max_size=8)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def answer(text: str = "hi", usage: dict[str, Any] | None = None, **message: Any) -> bytes:
    made = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    document = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [made]}
    return json.dumps(document | ({} if usage is None else {"usage": usage})).encode()


def usage(prompt: int, generated: int, **more: Any) -> dict[str, Any]:
    total = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
    return {**total, **more}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, st.integers(0, 50)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 30),
)
def test_joined_answers_hold_every_text_in_its_order_and_each_prompt_once(
    generated: list[tuple[str, int]], prompts: int, prompt_tokens: int
) -> None:
    answers = [answer(text, usage(prompt_tokens, count)) for _ in range(prompts) for text, count in generated]
    document = json.loads(joined(answers, prompts))
    texts = [choice["message"]["content"] for choice in document["choices"]]
    assert texts == [text for text, _ in generated] * prompts
    assert [choice["index"] for choice in document["choices"]] == list(range(len(answers)))
    assert document["usage"]["prompt_tokens"] == prompt_tokens * prompts
    assert document["usage"]["completion_tokens"] == sum(count for _, count in generated) * prompts
    assert document["usage"]["total_tokens"] == (
        document["usage"]["prompt_tokens"] + document["usage"]["completion_tokens"]
    )


def test_usage_that_one_did_not_say_is_not_made_up_and_estimates_stay_estimates() -> None:
    assert "usage" not in json.loads(joined([answer(usage=usage(1, 2)), answer()]))
    some = joined([answer(usage=usage(1, 2)), answer(usage=usage(1, 2, estimated=True))])
    assert json.loads(some)["usage"] == usage(1, 4, estimated=True)


def test_details_are_summed_where_all_have_them() -> None:
    one = usage(5, 2, completion_tokens_details={"reasoning_tokens": 1}, prompt_tokens_details={"cached_tokens": 3})
    found = json.loads(joined([answer(usage=one), answer(usage=one)]))["usage"]
    assert found["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert found["prompt_tokens_details"] == {"cached_tokens": 3}
    assert "prompt_tokens_details" not in json.loads(joined([answer(usage=usage(5, 2))] * 2))["usage"]


def test_two_tries_cost_what_both_cost() -> None:
    document = json.loads(added(answer("good", usage(20, 3)), answer("bad", usage(10, 4))))
    assert document["choices"][0]["message"]["content"] == "good" and document["usage"] == usage(30, 7)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"choices": []}', b'{"choices": [1]}', b'{"error": {}}'])
def test_what_is_no_answer_is_not_joined(raw: bytes) -> None:
    with pytest.raises(BadAnswerError):
        joined([answer(), raw])


def test_calls_behind_the_first_are_cut_off() -> None:
    several = json.loads(answer("", tool_calls=[CALL, {**CALL, "id": "c2"}]))["choices"][0]
    assert with_first_call(several)["message"]["tool_calls"] == [CALL]
    one = json.loads(answer("text"))["choices"][0]
    assert with_first_call(one) == one


def documents(events: bytes) -> list[dict[str, Any]]:
    found = [event_data(event) for event in split_events(events)]
    assert found[-1] == b"[DONE]"
    return [json.loads(data) for data in found[:-1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_stream_says_what_the_answer_says(parts: list[tuple[str, str, bool]], with_usage: bool) -> None:
    answers = [
        answer(text, usage(3, 4), **({"reasoning_content": thought} if thought else {}),
               **({"tool_calls": [CALL, {**CALL, "id": "c2"}]} if calls else {}))
        for text, thought, calls in parts
    ]  # fmt: skip
    whole = json.loads(joined(answers))
    chunks = documents(streamed(joined(answers), with_usage=with_usage))
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        ("a", 1, "m", "chat.completion.chunk")
    }
    if with_usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        chunks = chunks[:-1]
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in chunks)
    for index, (text, _, _) in enumerate(parts):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + ["stop"]
        collector = Collector(is_chat=True)
        for piece in mine:
            collector.feed(b"data: " + json.dumps({"id": "a", "choices": [{**piece, "index": 0}]}).encode())
        found = json.loads(collector.answer() or b"{}")["choices"][0]["message"]
        wanted = whole["choices"][index]["message"]
        assert (found["content"] or "") == text
        assert found.get("reasoning_content") == wanted.get("reasoning_content")
        assert [call["id"] for call in found.get("tool_calls", [])] == [
            call["id"] for call in wanted.get("tool_calls", [])
        ]


def test_a_text_completion_is_streamed_in_its_own_shape() -> None:
    document = {"id": "a", "object": "text_completion", "created": 1, "model": "m", "usage": usage(1, 1)}
    raw = json.dumps({**document, "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}).encode()
    (chunk,) = documents(streamed(raw, with_usage=False))
    assert chunk["choices"] == [{"index": 0, "text": "hi", "finish_reason": "stop"}]
    assert chunk["object"] == "text_completion" and "usage" not in chunk
