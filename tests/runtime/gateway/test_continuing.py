"""Answers in parts: what the client gets of two streams is what it would have got of one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import parse_chat, parse_completion
from runtime.gateway.continuing import Continuing, NotContinuedError, may_be_continued
from runtime.gateway.routing.table import Route
from tests.fakes.continuing import begun, chunk, pieces, stream
from tests.fakes.upstream import DONE, event

ROUTE = Route("chat", (), (), attempts=3, total_s=60.0)
TEXTS = st.text(st.sampled_from(list('abc  \n\t"\\{}é你😀')), max_size=60)


def chat(**more: Any) -> Ask:
    document = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True, **more}
    return Ask(ROUTE, "/v1/chat/completions", parse_chat(json.dumps(document).encode()), "r")


def completion(**more: Any) -> Ask:
    document = {"model": "chat", "prompt": "go:", "stream": True, **more}
    return Ask(ROUTE, "/v1/completions", parse_completion(json.dumps(document).encode()), "r")


def cut(raw: bytes, sizes: list[int]) -> list[bytes]:
    """Cut bytes as a network might."""
    found = []
    for size in sizes:
        found.append(raw[:size])
        raw = raw[size:]
    return [*found, raw]


def heard(continuing: Continuing, raw: bytes, sizes: list[int]) -> bytes:
    """Return what the client gets of the bytes of an endpoint; what is not whole is lost."""
    framer = sse.Framer()
    return b"".join(continuing.feed(framer.feed(part)) for part in cut(raw, sizes))


def documents(raw: bytes) -> list[dict[str, Any]]:
    data = [sse.event_data(each) for each in sse.split_events(raw)]
    return [json.loads(each) for each in data if each and each != b"[DONE]"]


def said(raw: bytes) -> str:
    choices = [choice for each in documents(raw) for choice in each["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@settings(max_examples=60, deadline=None)
@given(
    text=TEXTS,
    is_chat=st.booleans(),
    breaks=st.lists(st.integers(0, 2500), max_size=3),
    sizes=st.lists(st.integers(1, 400), max_size=8),
)
def test_wherever_streams_break_the_client_gets_the_whole_text(
    text: str, is_chat: bool, breaks: list[int], sizes: list[int]
) -> None:
    ask = chat() if is_chat else completion()
    continuing = Continuing(ask)
    asked, told = ask, b""
    for number, length in enumerate([*breaks, None]):
        known = begun(dict(asked.body.document)).removeprefix("go:")
        assert text.startswith(known)
        raw = b"".join(stream(f"e{number}", text[len(known) :], is_chat=is_chat))
        told += heard(continuing, raw[:length], sizes)
        assert text.startswith(said(told))
        if length is not None and length < len(raw) - len(DONE):
            if (ending := continuing.ending()) is not None:
                told += ending + DONE
                break
            assert continuing.is_possible
            asked = continuing.broke_off()
            assert asked.is_rest
        else:
            told += b"" if told.endswith(DONE) else DONE
            break
    assert said(told) == text
    found = documents(told)
    assert len({(each["id"], each["created"], each["model"]) for each in found}) == 1
    choices = [choice for each in found for choice in each["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert sum("role" in choice.get("delta", ()) for choice in choices) == is_chat


@given(said_by=st.lists(st.booleans(), min_size=1, max_size=3), text=st.text("abcdefgh", min_size=30, max_size=60))
@settings(max_examples=40, deadline=None)
def test_the_usage_is_that_of_all_parts(said_by: list[bool], text: str) -> None:
    """Endpoints that break off after two tokens say how many came, or do not."""
    continuing = Continuing(chat(max_tokens=100))
    asked, known = None, ""
    for number, is_said in enumerate(said_by):
        usage = {"usage": {"prompt_tokens": 7 + 2 * number, "completion_tokens": 2}} if is_said else {}
        for index, piece in enumerate(pieces(text[len(known) :])[:2]):
            continuing.feed(chunk("a", is_chat=True, delta={"content": piece}, **(usage if index else {})))
        asked = continuing.broke_off()
        known = begun(dict(asked.body.document))
    before = 2 * len(said_by)
    assert continuing.before == before
    assert asked is not None and asked.body.document["max_tokens"] == 100 - before
    counted = {"prompt_tokens": 7 + before, "completion_tokens": 5, "total_tokens": 12 + before}
    last = continuing.feed(event({"id": "b", "choices": [], "usage": counted}))
    (usage,) = [each["usage"] for each in documents(last)]
    whole = {"prompt_tokens": 7, "completion_tokens": before + 5, "total_tokens": before + 12}
    assert usage == (whole if all(said_by) else {**whole, "estimated": True})


@pytest.mark.parametrize(
    ("more", "may"),
    [
        ({}, True),
        ({"n": 1, "logprobs": False, "response_format": {"type": "text"}, "stop": ["x"], "tool_choice": "auto"}, True),
        ({"n": 2}, False),
        ({"logprobs": True}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, False),
        ({"guided_regex": "a+"}, False),
        ({"grammar": "root ::= x"}, False),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}, False),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, False),
        ({"add_generation_prompt": False}, False),
        (
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            True,
        ),
    ],
)
def test_only_plain_text_is_gone_on_with(more: dict[str, Any], may: bool) -> None:
    assert may_be_continued(chat(**more)) is may


@pytest.mark.parametrize(
    ("more", "may"),
    [
        ({}, True),
        ({"prompt": ["go:"]}, True),
        ({"prompt": ["a", "b"]}, False),
        ({"prompt": [1, 2]}, False),
        ({"echo": True}, False),
        ({"suffix": "end"}, False),
        ({"logprobs": 0}, False),
        ({"best_of": 2}, False),
    ],
)
def test_only_one_prompt_of_text_is_gone_on_with(more: dict[str, Any], may: bool) -> None:
    assert may_be_continued(completion(**more)) is may


def test_a_beginning_that_the_client_gave_is_kept() -> None:
    begins = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "One "}]
    options = {"enable_thinking": True, "x": 1}
    ask = chat(messages=begins, continue_final_message=True, add_generation_prompt=False, chat_template_kwargs=options)
    continuing = Continuing(ask)
    continuing.feed(chunk("a", is_chat=True, delta={"content": "two "}))
    asked = continuing.broke_off().body
    assert asked.document["messages"] == [begins[0], {"role": "assistant", "content": "One two"}]
    assert asked.document["chat_template_kwargs"] == {"x": 1}
    assert json.loads(asked.raw) == asked.document


def test_before_any_text_the_question_is_asked_as_it_was() -> None:
    ask = chat(max_tokens=9)
    continuing = Continuing(ask)
    continuing.feed(chunk("a", is_chat=True, delta={"role": "assistant", "content": "\n"}))
    asked = continuing.broke_off().body.document
    assert asked == {**ask.body.document, "max_tokens": 8}
    told = continuing.feed(chunk("b", is_chat=True, delta={"reasoning_content": "Hm."}))
    assert documents(told)[0]["choices"][0]["delta"] == {"reasoning_content": "Hm."}


@pytest.mark.parametrize(
    "odd",
    [
        event("no JSON"),
        chunk("a", is_chat=True, delta={"tool_calls": [{"index": 0}]}),
        chunk("a", is_chat=True, delta={"content": ["parts"]}),
        event({"choices": [{"index": 1, "delta": {"content": "x"}}]}),
        event({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": []}}]}),
    ],
)
def test_what_is_more_than_text_is_not_gone_on_with(odd: bytes) -> None:
    continuing = Continuing(chat())
    first = chunk("a", is_chat=True, delta={"content": "x"})
    assert continuing.feed(first) == first
    assert continuing.is_possible
    assert continuing.feed(odd) == odd
    assert not continuing.is_possible


def test_an_answer_of_which_something_was_lost_is_not_called_whole() -> None:
    continuing = Continuing(chat())
    continuing.feed(chunk("a", is_chat=True, delta={"content": "x"}, finish="stop"))
    assert continuing.ending() == b""
    continuing.give_up()
    assert continuing.ending() is None
    assert not continuing.is_possible


def test_who_thinks_anew_does_not_go_on() -> None:
    continuing = Continuing(chat())
    continuing.feed(chunk("a", is_chat=True, delta={"content": "x"}))
    continuing.broke_off()
    thought = chunk("b", is_chat=True, delta={"reasoning_content": "Hm."})
    with pytest.raises(NotContinuedError):
        continuing.feed(chunk("b", is_chat=True, delta={"role": "assistant"}) + thought)
    assert continuing.is_possible
    with pytest.raises(NotContinuedError):
        continuing.feed(chunk("b", is_chat=True, delta={"content": "y"}) + thought)
    assert not continuing.is_possible, "the client has not got what came before it"
