"""OpenAI's answers become Ollama's: lines of JSON, the last one `done`, however the events arrive."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import sse
from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.protocols.ollama.answers import Clock, Instead, Shape, Speech, Vector, Vectors, moment, resident
from tests.fakes.upstream import DONE, FINISH, ROLE, chunk_document, completion, event, word

WALL = 1_691_052_739.406455
AT = "2023-08-03T08:52:19.406455Z"
COMMENT = b": keep-alive\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}})
THOUGHT = event(chunk_document({"reasoning_content": "hm "}))
THOUGHT_TOO = event(chunk_document({"reasoning": "so "}))
ERROR = event({"error": {"message": "broke off", "type": "server_error"}})
UNICODE = event(chunk_document({"content": "größer 🚀\u2028\u0085"}))


def clock(step_s: float = 1.0) -> Clock:
    """Return clocks of which the first goes on by a step at every look."""
    ticks = itertools.count()
    return Clock(lambda: next(ticks) * step_s, lambda: WALL)


def said(stream: bytes, shape: Shape = "chat") -> list[dict[str, Any]]:
    """Return the lines of a translated stream."""
    raw = Speech("chat:latest", shape, clock()).feed(stream)
    assert raw.endswith(b"\n") or not raw
    # Split as ollama-python splits (httpx's `iter_lines`): at everything that Unicode calls the end of a line.
    return [json.loads(line) for line in raw.decode().splitlines()]


def delta(index: int, arguments: str | None = None, **more: Any) -> bytes:
    """Return the event of a piece of a tool call."""
    function = {key: value for key, value in (("name", more.pop("name", None)), ("arguments", arguments)) if value}
    return event(chunk_document({"tool_calls": [{"index": index, "function": function, **more}]}))


CALLS = (
    delta(0, "", id="call_a", type="function", name="add"),
    delta(0, '{"a": '),
    delta(0, "1}"),
    delta(1, '{"b": {"c": [2]}}', id="call_b", type="function", name="mul"),
    event(chunk_document({}, "tool_calls")),
)


def test_a_stream_is_pieces_and_a_last_line_that_says_what_it_took() -> None:
    first, second, last = said(ROLE + word(0) + UNICODE + FINISH + USAGE + DONE)
    assert first == {
        "model": "chat:latest",
        "created_at": AT,
        "message": {"role": "assistant", "content": "w0 "},
        "done": False,
    }
    assert second["message"]["content"] == "größer 🚀\u2028\u0085"
    assert last == {
        "model": "chat:latest",
        "created_at": AT,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2_000_000_000,
        "load_duration": 0,
        "prompt_eval_count": 11,
        "prompt_eval_duration": 1_000_000_000,
        "eval_count": 7,
        "eval_duration": 1_000_000_000,
    }


def test_a_prompt_is_answered_with_a_text() -> None:
    text = event({"choices": [{"index": 0, "text": "once"}]})
    for piece in (word(0), text):
        first, last = said(piece + FINISH + USAGE + DONE, "generate")
        assert "message" not in first
        assert first["response"] in ("w0 ", "once")
        assert (last["response"], last["done"], last["eval_count"]) == ("", True, 7)


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("content_filter", "stop")]
)
def test_why_an_answer_ended(finish: str, reason: str) -> None:
    assert said(word(0) + event(chunk_document({}, finish)) + DONE)[-1]["done_reason"] == reason
    document = completion("/v1/chat/completions", "hello")
    document["choices"][0]["finish_reason"] = finish
    assert json.loads(Speech("m", "chat", clock()).whole(json.dumps(document).encode()))["done_reason"] == reason


def test_thoughts_stand_beside_the_content_under_either_name() -> None:
    lines = said(THOUGHT + THOUGHT_TOO + word(0) + FINISH + DONE)
    assert [line["message"].get("thinking") for line in lines] == ["hm ", "so ", None, None]
    assert [line["message"]["content"] for line in lines] == ["", "", "w0 ", ""]
    assert said(THOUGHT + DONE, "generate")[0]["thinking"] == "hm "


def test_calls_come_whole_and_their_arguments_are_objects() -> None:
    lines = said(ROLE + b"".join(CALLS) + USAGE + DONE)
    assert [line["done"] for line in lines] == [False, True]
    assert lines[0]["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_a", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
            {"id": "call_b", "function": {"index": 1, "name": "mul", "arguments": {"b": {"c": [2]}}}},
        ],
    }
    assert "tool_calls" not in lines[-1]["message"]


def test_calls_that_are_all_numbered_zero_are_told_apart_by_their_ids() -> None:
    pieces = delta(0, "{}", id="a", name="f") + delta(0, '{"x": 1}', id="b", name="g")
    calls = said(pieces + event(chunk_document({}, "tool_calls")) + DONE)[0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", {}), ("b", {"x": 1})]


def test_a_call_that_was_cut_off_is_left_out_and_one_that_makes_no_sense_is_an_error() -> None:
    begun = delta(0, '{"a": ', id="a", name="f")
    lines = said(begun + event(chunk_document({}, "length")) + DONE)
    assert [line["done_reason"] for line in lines if line["done"]] == ["length"]
    assert all("tool_calls" not in line["message"] for line in lines)
    with pytest.raises(BadAnswerError):
        said(begun + event(chunk_document({}, "tool_calls")))
    with pytest.raises(BadAnswerError):
        said(delta(0, "[1]", name="f") + event(chunk_document({}, "tool_calls")))


def test_who_waits_gets_pieces_without_content() -> None:
    lines = said(COMMENT + COMMENT + word(0))
    assert [(line["message"]["content"], line["done"]) for line in lines] == [("", False), ("", False), ("w0 ", False)]


def test_an_error_is_the_last_line() -> None:
    lines = said(word(0) + ERROR + word(1) + FINISH + DONE)
    assert lines[1:] == [{"error": "broke off"}]
    speech = Speech("m", "chat", clock())
    assert json.loads(speech.feed(ERROR)) == {"error": "broke off"}
    assert speech.feed(word(1) + DONE) == b""


def test_log_probabilities_keep_their_shape() -> None:
    told = [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": None}]}
    ]
    wanted = [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]},
    ]
    chunk = chunk_document({"content": "a"})
    chunk["choices"][0]["logprobs"] = {"content": told}
    assert said(event(chunk))[0]["logprobs"] == wanted
    older = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0}], "text_offset": [0]}
    text = {"choices": [{"index": 0, "text": "a", "logprobs": older}]}
    found = said(event(text), "generate")[0]["logprobs"]
    assert found == [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0}]}]


def test_what_llama_cpp_measures_is_told_rather_than_what_was_seen_from_here() -> None:
    timings = {"prompt_n": 5, "prompt_ms": 12.5, "predicted_n": 7, "predicted_ms": 250.0}
    last = said(word(0) + FINISH + event({"choices": [], "timings": timings}) + DONE)[-1]
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 250_000_000)


def test_counts_that_were_estimated_are_marked() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "estimated": True}
    last = said(word(0) + FINISH + event({"choices": [], "usage": usage}) + DONE)[-1]
    assert (last["prompt_eval_count"], last["eval_count"], last["estimated"]) == (3, 2, True)


def test_a_whole_answer_is_one_object() -> None:
    raw = json.dumps(completion("/v1/chat/completions", "größer")).encode()
    whole = json.loads(Speech("m", "chat", clock()).whole(raw))
    assert whole == {
        "model": "m",
        "created_at": AT,
        "message": {"role": "assistant", "content": "größer"},
        "done": True,
        "done_reason": "stop",
        "total_duration": 1_000_000_000,
        "load_duration": 0,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 0,
        "eval_count": 5,
        "eval_duration": 1_000_000_000,
    }
    text = json.dumps(completion("/v1/completions", "once")).encode()
    assert json.loads(Speech("m", "generate", clock()).whole(text))["response"] == "once"


def test_a_whole_answer_may_have_thoughts_and_calls_and_no_content() -> None:
    called = {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [called]}
    raw = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()
    assert json.loads(Speech("m", "chat", clock()).whole(raw))["message"] == {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "tool_calls": [{"id": "call_a", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}],
    }


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"choices": []}', b"nothing", b'{"choices": [{"message": 3}]}'])
def test_a_whole_answer_that_makes_no_sense_is_an_error(raw: bytes) -> None:
    with pytest.raises((BadAnswerError, ValueError, LookupError, TypeError, AttributeError)):
        Speech("m", "chat", clock()).whole(raw)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_arguments_with_numbers_that_are_no_json_are_an_error(number: str) -> None:
    written = f'{{"x": {number}}}'
    for arguments in (json.dumps(written), written):
        call = f'{{"id": "a", "type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
        raw = f'{{"choices": [{{"message": {{"tool_calls": [{call}]}}, "finish_reason": "tool_calls"}}]}}'
        with pytest.raises(BadAnswerError):
            Speech("m", "chat", clock()).whole(raw.encode())


def test_vectors_are_passed_on_as_they_are_written() -> None:
    raw = json.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.10000000149011612, -1e-05]},
                {"object": "embedding", "index": 1, "embedding": [1, 2]},
            ],
            "model": "e",
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        }
    ).encode()
    found = Vectors("e:latest", clock(), began_at=-1.0).whole(raw)
    assert b"0.10000000149011612, -1e-05" in found
    assert json.loads(found) == {
        "model": "e:latest",
        "total_duration": 1_000_000_000,
        "load_duration": 0,
        "prompt_eval_count": 6,
        "embeddings": [[0.10000000149011612, -1e-05], [1, 2]],
    }
    one = {"data": [{"index": 0, "embedding": [0.5]}]}
    assert json.loads(Vector().whole(json.dumps(one).encode())) == {"embedding": [0.5]}
    with pytest.raises(BadAnswerError):
        Vector().whole(b"{}")


def test_a_model_that_is_only_loaded_or_dropped() -> None:
    assert resident("m", "chat", "load", WALL) == {
        "model": "m",
        "created_at": AT,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    assert resident("m", "generate", "unload", WALL)["response"] == ""
    assert Instead(lambda: {"a": 1}).whole(b"whatever") == b'{"a": 1}'
    assert Instead(dict).feed(word(0)) == b""


def test_times_are_in_utc_with_their_fraction() -> None:
    assert moment(0.0) == "1970-01-01T00:00:00.000000Z"


EVENTS = [ROLE, COMMENT, USAGE, ERROR, THOUGHT, UNICODE, *(word(index) for index in range(3)), *CALLS, FINISH, DONE]


def _all(speech: Speech, pieces: list[bytes]) -> tuple[bytes, bool]:
    """Feed pieces; return what was said, and whether it ended in an error."""
    heard = b""
    try:
        for piece in pieces:
            heard += speech.feed(piece)
    except BadAnswerError:
        return heard, True
    return heard, False


@settings(max_examples=50)
@given(st.lists(st.sampled_from(EVENTS), max_size=12), st.lists(st.integers(0, 3000), max_size=8))
def test_however_the_bytes_are_split_the_lines_are_the_same(events: list[bytes], cuts: list[int]) -> None:
    def still() -> Speech:
        return Speech("m", "chat", Clock(lambda: 0.0, lambda: WALL))

    stream = b"".join(events)
    framer, places = sse.Framer(), sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    split = [framer.feed(stream[start:end]) for start, end in itertools.pairwise(places)]
    one_by_one, is_bad = _all(still(), events)
    heard, is_bad_too = _all(still(), split)
    assert is_bad == is_bad_too
    # An event that makes no sense also takes along what came together with it.
    assert one_by_one == heard if not is_bad else one_by_one.startswith(heard)
    for line in one_by_one.splitlines():
        assert isinstance(json.loads(line), dict)
