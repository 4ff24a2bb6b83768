"""A stream becomes content and calls, wherever its pieces are cut."""

import json
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tool_parsers import (
    function_gemma,
    gemma4,
    glm47,
    json_tools,
    kimi_k2,
    kimi_k3,
    laguna,
    longcat,
    minicpm5,
    minimax_m2,
    mistral,
    muse_spark,
    pythonic,
    qwen3_coder,
)

from runtime.worker.answer import Piece
from runtime.worker.choices import SILENT_PIECES, Stream, Whole
from runtime.worker.openai import COMMENT, Envelope, Usage
from runtime.worker.tools.asked import Tool
from runtime.worker.tools.reading import Call, parse_bare_json, read_calls
from runtime.worker.tools.shapes import delta_of, message_of
from runtime.worker.tools.stream import CallPart, CallReader, Part, Text

WEATHER = Tool(
    "weather",
    "Tells the weather.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    is_strict=False,
)
PARIS = ("weather", {"city": "Paris", "days": 3})
ROME = ("weather", {"city": "Rome", "days": 1})
ONE_JSON = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
TWO_JSON = ONE_JSON + '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>'

# A family's parser, what a model of it writes, and the calls in it.
FAMILIES = [
    (json_tools, ONE_JSON, [PARIS]),
    (json_tools, TWO_JSON, [PARIS, ROME]),
    (
        qwen3_coder,
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>"
        ),
        [PARIS],
    ),
    (
        glm47,
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
        ),
        [PARIS],
    ),
    (
        laguna,
        (
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
            "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
        ),
        [PARIS],
    ),
    (
        longcat,
        (
            "<longcat_tool_call>weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Paris"
            "</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
            "</longcat_tool_call>"
        ),
        [PARIS],
    ),
    (mistral, '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 3}', [PARIS]),
    (mistral, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris", "days": 3}}]', [PARIS]),
    (
        mistral,
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 1}',
        [PARIS, ROME],
    ),
    (
        kimi_k2,
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_calls_section_end|>'
        ),
        [PARIS],
    ),
    (
        kimi_k3,
        (
            '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument key="city" type="string"'
            '<|sep|>Paris<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>argument'
            "<|sep|><|close|>call<|sep|><|close|>tools<|sep|>"
        ),
        [PARIS],
    ),
    (pythonic, '<|tool_call_start|>[weather(city="Paris", days=3)]<|tool_call_end|>', [PARIS]),
    (
        pythonic,
        '<|tool_call_start|>[weather(city="Paris", days=3), weather(city="Rome", days=1)]<|tool_call_end|>',
        [PARIS, ROME],
    ),
    (
        minimax_m2,
        (
            '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
            '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
        ),
        [PARIS],
    ),
    (
        minicpm5,
        '<function name="weather"><param name="city">Paris</param><param name="days">3</param></function>',
        [PARIS],
    ),
    (
        muse_spark,
        (
            '<atem:function_calls>\n<atem:invoke name="weather">\n<atem:parameter name="city">Paris</atem:parameter>\n'
            '<atem:parameter name="days">3</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
        ),
        [PARIS],
    ),
    (gemma4, '<|tool_call>call:weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', [PARIS]),
    (
        function_gemma,
        "<start_function_call>call:weather{city:<escape>Paris<escape>,days:3}<end_function_call>",
        [PARIS],
    ),
]
IDS = [f"{family.__name__.rpartition('.')[2]}-{index}" for index, (family, _, _) in enumerate(FAMILIES)]


def parse_with(parser: object) -> Callable[[str], list[Call]]:
    return lambda text: read_calls(parser, text, [WEATHER])  # type: ignore[arg-type]


def reader(family: object = json_tools, *, is_parallel: bool = True) -> CallReader:
    ids = count()
    return CallReader(
        family.tool_call_start,  # type: ignore[attr-defined]
        family.tool_call_end,  # type: ignore[attr-defined]
        parse_with(family.parse_tool_call),  # type: ignore[attr-defined]
        lambda: f"id-{next(ids)}",
        is_parallel,
    )


def bare() -> CallReader:
    return CallReader("", "", parse_with(parse_bare_json), lambda: "id")


def read(one: CallReader, *pieces: str, is_complete: bool = True) -> list[Part]:
    parts = [part for piece in pieces for part in one.push(piece)]
    return [*parts, *one.finish(is_complete=is_complete)]


def content(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def called(parts: list[Part]) -> list[tuple[str, object]]:
    return [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, CallPart)]


@pytest.mark.parametrize(("family", "text", "expected"), FAMILIES, ids=IDS)
def test_every_family_is_read_wherever_its_text_is_cut(family, text, expected):
    whole = f"Let me look. {text}"
    for cut in range(len(whole) + 1):
        parts = read(reader(family), whole[:cut], whole[cut:])
        assert called(parts) == expected
        assert content(parts) == "Let me look."
    parts = read(reader(family), *whole)
    assert called(parts) == expected
    assert [part.index for part in parts if isinstance(part, CallPart)] == list(range(len(expected)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(TWO_JSON) + 20), max_size=8), st.sampled_from(["", "Well,  ", "a <tool_cal b "]))
def test_cuts_change_nothing(cuts, before):
    text = f"{before}{TWO_JSON}\nDone."
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    parts = read(reader(), *pieces)
    assert called(parts) == [PARIS, ROME]
    assert content(parts) == f"{before.rstrip()}\nDone."


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<tool", "_call>", "{", "}", " ", "\n", "x", "<"])))
def test_a_text_without_calls_is_never_changed(pieces):
    parts = read(reader(), *pieces)
    assert content(parts) == "".join(pieces)
    assert called(parts) == []


@given(st.lists(st.sampled_from(["{", "}", '"name"', ":", " ", "x", "<|python_tag|>", "[", ";", "\n"])))
def test_a_bare_text_without_calls_is_never_changed(pieces):
    parts = read(bare(), *pieces)
    assert content(parts) == "".join(pieces)


def test_content_streams_before_a_call_and_only_what_may_be_a_mark_waits():
    one = reader()
    assert one.push("Let me look: ") == [Text("Let me look:")]
    assert one.push("yes <tool") == [Text(" yes")]
    assert one.push("box>") == [Text(" <toolbox>")]


def test_a_call_that_does_not_parse_is_content_and_the_next_one_is_a_call():
    broken = '<tool_call>\n{"name": "weather", "arguments": {oops}\n</tool_call>'
    parts = read(reader(), broken + "\n", ONE_JSON)
    assert called(parts) == [PARIS]
    assert content(parts).strip() == broken


def test_an_end_mark_inside_a_text_does_not_end_the_call():
    arguments = {"city": "the mark </tool_call> of Paris"}
    text = f'<tool_call>{{"name": "weather", "arguments": {json.dumps(arguments)}}}</tool_call>'
    assert called(read(reader(), *text)) == [("weather", arguments)]


def test_many_end_marks_end_the_search_and_lose_nothing():
    text = "<tool_call>" + "</tool_call>" * 500
    parts = read(reader(), text)
    assert content(parts) == text


def test_a_call_that_was_cut_off_is_content_where_nothing_follows_its_family():
    glm = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>da"
    parts = read(reader(glm47), glm, is_complete=False)
    assert called(parts) == []
    assert content(parts) == glm


def test_a_call_may_end_with_the_answer_instead_of_its_mark():
    assert called(read(reader(), ONE_JSON.removesuffix("</tool_call>"))) == [PARIS]


def test_without_parallel_calls_only_the_first_is_told():
    parts = read(reader(is_parallel=False), TWO_JSON, "\nDone.")
    assert called(parts) == [PARIS]
    assert content(parts) == ""
    several = '[TOOL_CALLS]weather[ARGS]{"city": "a"}[TOOL_CALLS]weather[ARGS]{"city": "b"}'
    assert len(called(read(reader(mistral, is_parallel=False), several))) == 1


def test_every_call_has_its_own_id_and_keeps_the_models_own():
    section = "<|tool_call_begin|>functions.weather:7<|tool_call_argument_begin|>{}<|tool_call_end|>"
    text = f"<|tool_calls_section_begin|>{section}{section}<|tool_calls_section_end|>"
    ids = [part.id for part in read(reader(kimi_k2), text) if isinstance(part, CallPart)]
    assert ids == ["functions.weather:7", "id-0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [("weather", {"city": "Paris"})]),
        ('\n<|python_tag|>{"name": "weather", "parameters": {}}', [("weather", {})]),
        (
            '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}',
            [("a", {}), ("b", {"x": 1})],
        ),
    ],
)
def test_llama_calls_are_the_whole_answer(text, expected):
    assert called(read(bare(), *text)) == expected


def test_other_json_of_a_llama_is_content():
    text = '{"answer": 42}'
    assert content(read(bare(), *text)) == text
    one = bare()
    assert one.push("Hello {") == [Text("Hello {")]


@pytest.mark.parametrize(
    "parsed",
    [None, {}, {"name": 1}, {"name": "f", "arguments": [1]}, {"name": "f", "arguments": {"x": float("nan")}},
     {"name": "f", "arguments": {"x": {1}}}, {"name": "f", "arguments": {"x": "\ud800"}}, [None]],
)  # fmt: skip
def test_what_is_no_call_is_not_read_as_one(parsed):
    assert read_calls(lambda *_: parsed, "x", [WEATHER]) == []


def test_text_that_glm_cannot_read_is_no_call_of_an_unknown_function():
    assert read_calls(glm47.parse_tool_call, "", [WEATHER]) == []


def test_answers_have_openais_shapes():
    parts: list[Part] = [Text("Look."), CallPart(0, "id", "f", "{}")]
    call = {"id": "id", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert message_of(parts) == {"role": "assistant", "content": "Look.", "tool_calls": [call]}
    assert message_of(parts[1:])["content"] is None
    assert message_of([]) == {"role": "assistant", "content": ""}
    assert delta_of(parts[1]) == {"tool_calls": [{"index": 0, **call}]}
    assert delta_of(parts[0]) == {"content": "Look."}


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_stop_string_inside_a_call_leaves_it_text_and_the_models_own_end_does_not(is_cut):
    """GLM's parser makes a call of half of one, so only the reader can tell."""

    def new_reader() -> CallReader:
        return reader(glm47)

    half = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>da"
    piece = Piece(0, half, "stop", stop="END" if is_cut else None)
    envelope = Envelope("chat", "x", 0, "m")
    whole = Whole(envelope, 1, has_logprobs=False, new_reader=new_reader)
    whole.add([piece])
    (choice,) = whole.body(Usage(1, 1))["choices"]
    sent = Stream(envelope, 1, has_logprobs=False, include_usage=False, new_reader=new_reader).add([piece])
    assert choice["finish_reason"] == ("stop" if is_cut else "tool_calls")
    assert (choice["message"]["content"] == half) == is_cut
    assert (b'"tool_calls"' not in sent) == is_cut


def test_a_stream_shows_life_while_a_long_call_is_held_back():
    stream = Stream(Envelope("chat", "id", 7, "m"), 1, has_logprobs=False, include_usage=False, new_reader=reader)
    sent = [stream.add([Piece(0, character, None)]) for character in ONE_JSON[:40]]
    assert sent.count(COMMENT) == 40 // SILENT_PIECES
    assert {*sent} == {b"", COMMENT}
    last = stream.add([Piece(0, ONE_JSON[40:], "stop")])
    events = [json.loads(line.removeprefix("data: ")) for line in last.decode().split("\n\n") if line]
    (call, end) = (event["choices"][0] for event in events)
    assert call["delta"]["tool_calls"][0]["function"]["name"] == "weather"
    assert (call["finish_reason"], end["finish_reason"], end["delta"]) == (None, "tool_calls", {})
    assert stream.is_over
