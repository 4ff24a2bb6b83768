"""Calls are told while they are written, and what is told adds up to what the whole answer tells."""

import json
import random
from collections.abc import Sequence
from functools import partial
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.worker.answer import Piece
from runtime.worker.choices import Stream, Whole
from runtime.worker.openai import Envelope, Usage
from runtime.worker.tools.asked import Tool
from runtime.worker.tools.early import forms_of
from runtime.worker.tools.families import BARE_JSON, WRITERS, Family, calls
from runtime.worker.tools.json_text import JsonText
from runtime.worker.tools.lark import Lark
from runtime.worker.tools.reading import Call, Parser, parse_bare_json, read_calls
from runtime.worker.tools.sketch import MAX_ARGUMENTS, Sketch
from runtime.worker.tools.stream import ArgumentsPart, CallPart, CallReader, Part, Text
from tests.runtime.worker.test_call_grammars import DEFINITIONS, FLAT, MARKS, NESTED, NOW, family_of, weather
from tests.runtime.worker.test_tool_stream import FAMILIES, IDS, WEATHER
from tests.runtime.worker.tiny import write_model
from tests.runtime.worker.walks import Walker

BARE = '{"name": "weather", "parameters": {"city": "Paris", "days": 3}}'
TEXTS = [
    *((module.__name__.rpartition(".")[2], text) for module, text, _ in FAMILIES),
    (BARE_JSON, BARE),
    (BARE_JSON, f"{BARE}; {BARE}"),
    (
        "longcat",
        '<longcat_tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 3}}</longcat_tool_call>',
    ),
    (
        "kimi_k3",
        (
            '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>json type="object"<|sep|>'
            '{"city": "Paris", "days": 3}<|close|>json<|sep|><|close|>call<|sep|><|open|>call tool="weather" index="2"'
            '<|sep|><|open|>json type="object"<|sep|>{"city": "Rome"}<|close|>json<|sep|><|close|>call<|sep|>'
            "<|close|>tools<|sep|>"
        ),
    ),
    (
        "minimax_m2",
        (
            '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
            '<invoke name="weather">\n<parameter name="city">Rome</parameter>\n</invoke>\n</minimax:tool_call>'
        ),
    ),
    (
        "pythonic",
        "<|tool_call_start|>[weather(city='a, \\'b\\' (c)', days=3), now(), weather(days=1)]<|tool_call_end|>",
    ),
    (
        "pythonic",
        "<|tool_call_start|>[weather(city=\"\"\"a, \"b\"\"\", x='', y='\"', z='''it's''', days=3)]<|tool_call_end|>",
    ),
    ("gemma4", '<|tool_call>call:weather{city:<|"|>a, {b} "c"<|"|>,tags:[<|"|>x, y<|"|>,2],days:3}<tool_call|>'),
    (
        "qwen3_coder",
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\ndef f():\n    return '</div>'\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\nAnd so on."
        ),
    ),
    (
        "pythonic",
        (
            "<|tool_call_start|>[weather(city, days)]<|tool_call_end|> or\n"
            '<|tool_call_start|>[weather(city="Paris", days=3)]<|tool_call_end|>'
        ),
    ),
    ("json_tools", '<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>'),
    ("json_tools", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>'),
    ("json_tools", '<tool_call>{"name": "weather", "arguments": {"city": "a", "city": "b"}}</tool_call>'),
    (
        "json_tools",
        '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d\\ude00 \\n\\u00e9", "d": 1E2 }}</tool_call>',
    ),
    ("json_tools", '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call> or so'),
    (
        "json_tools",
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>", "d": [1, {"e": null}]}}</tool_call>',
    ),
    ("json_tools", '<tool_call>{"name": "weather", "arguments": {"city": oops}}</tool_call> or so'),
    ("json_tools", '<tool_call>{"name": "stranger", "arguments": {"city": "Paris"}}</tool_call>'),
]
NAMES = [f"{family}-{index}" for index, (family, _) in enumerate(TEXTS)]
TOOLS = (WEATHER, NOW)
Told = list[tuple[str, str, str]]
"""Id, name and arguments of each call."""


def syntax_of(name: str) -> tuple[Family, Parser]:
    return (Family(name, "", ""), parse_bare_json) if name == BARE_JSON else family_of(name)


def reader(name: str, tools: Sequence[Tool] = TOOLS, *, is_early: bool = True, is_parallel: bool = True) -> CallReader:
    """Return what reads an answer that streams, or one that does not."""
    family, parser = syntax_of(name)
    ids = count()

    def read(text: str) -> list[Call]:
        return read_calls(parser, text, tools)

    sketch = partial(Sketch, forms_of(name, read), frozenset(tool.name for tool in tools))
    return CallReader(family.start, family.end, read, lambda: f"id-{next(ids)}", is_parallel, sketch, is_early)


def parts_of(one: CallReader, pieces: Sequence[str], *, is_complete: bool = True) -> list[Part]:
    parts = [part for piece in pieces for part in one.push(piece)]
    return [*parts, *one.finish(is_complete=is_complete)]


def added_up(parts: Sequence[Part]) -> Told:
    """Return the calls as a client puts them together; fails where their parts do not come in OpenAI's order."""
    found: dict[int, tuple[str, str, str]] = {}
    for part in parts:
        match part:
            case CallPart(index, call_id, name, arguments):
                assert index == len(found), "the calls are numbered in their order"
                found[index] = (call_id, name, arguments)
            case ArgumentsPart(index, text):
                call_id, name, arguments = found[index]
                assert text
                found[index] = (call_id, name, arguments + text)
            case Text():
                pass
    assert len({call_id for call_id, _, _ in found.values()}) == len(found)
    return list(found.values())


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def content(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def check(name: str, pieces: Sequence[str], *, is_complete: bool = True, tools: Sequence[Tool] = TOOLS) -> Told:
    """Fail unless a stream in these pieces adds up to the whole answer; return its calls."""
    whole = parts_of(reader(name, tools, is_early=False), ["".join(pieces)], is_complete=is_complete)
    sent = parts_of(reader(name, tools), pieces, is_complete=is_complete)
    assert content(sent) == content(whole)
    told, expected = added_up(sent), [call[1:] for call in added_up(whole)]
    # Of calls that turned out to be none a stream has told the beginning: what is never closed is no JSON.
    assert [call[1:] for call in told if is_json(call[2]) or call[1:] in expected] == expected
    return told


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=NAMES)
def test_wherever_a_stream_is_cut_it_adds_up_to_the_whole_answer(name, text):
    for place in range(0, len(text) + 1, 3):
        check(name, cut(text, [place]))
    check(name, [*text])


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=NAMES)
def test_wherever_an_answer_ends_nothing_is_lost_and_no_half_a_call_looks_whole(name, text):
    for place in range(0, len(text) + 1, 5):
        for is_complete in (True, False):
            check(name, [*text[:place]], is_complete=is_complete)


@pytest.mark.parametrize(("name", "text"), TEXTS[: len(FAMILIES)], ids=IDS)
def test_an_answer_that_was_cut_off_tells_its_calls_as_far_as_they_got(name, text):
    """So does OpenAI's API; no text of such a call is content, streaming or not."""
    half = text[: text.index("3") + 1]
    for is_early in (True, False):
        one = reader(name, is_early=is_early)
        parts = parts_of(one, [*f"Well. {half}"], is_complete=False)
        ((_, called, known),) = added_up(parts)
        assert content(parts) == "Well."
        assert (called, known.replace(" ", "")[:15]) == ("weather", '{"city":"Paris"')
        assert not is_json(known)
        assert one.is_cut


def test_of_several_calls_that_were_cut_off_those_that_had_ended_are_whole():
    text = next(text for name, text in TEXTS if name == "minimax_m2" and "Rome" in text)
    one = reader("minimax_m2", is_early=False)
    told = added_up(parts_of(one, [text[: text.index("Rome")]], is_complete=False))
    assert [arguments for _, _, arguments in told] == ['{"city": "Paris"}', ""]
    assert (one.calls, one.is_cut) == (1, True)


def test_a_call_of_llamas_may_end_without_its_last_brace():
    for is_early in (True, False):
        one = reader(BARE_JSON, is_early=is_early)
        parts = parts_of(one, [*BARE.removesuffix("}")])
        assert added_up(parts)[0][1:] == ("weather", '{"city": "Paris", "days": 3}')
        assert (content(parts), one.calls, one.is_cut) == ("", 1, False)


def test_what_no_tool_is_named_by_stays_content_where_it_is_cut_off():
    for text in ("<tool_call>", '<tool_call>{"na', '<tool_call>{"name": "stranger", "arguments": {"a": 1'):
        for is_early in (True, False):
            parts = parts_of(reader("json_tools", is_early=is_early), [*text], is_complete=False)
            assert (content(parts), added_up(parts)) == (text, [])


@pytest.mark.parametrize("cut_at", ["<tool", "<tool_call>", '{"name', '"weather", '])
def test_where_only_calls_are_allowed_half_a_mark_is_no_content(cut_at):
    text = TEXTS[1][1]
    for end in (text.index(cut_at) + len(cut_at), text.rindex(cut_at) + len(cut_at)):
        for is_early in (True, False):
            one = reader("json_tools", is_early=is_early)
            one.must_call = True
            parts = parts_of(one, [*text[:end]], is_complete=False)
            assert content(parts) == ""
            assert all(is_json(arguments) for _, _, arguments in added_up(parts))
            one = reader("json_tools", is_early=is_early)
            one.has_form = True
            parts = parts_of(one, [*text[:end]], is_complete=False)
            assert content(parts) == ("" if one.calls else text[:end])


@settings(max_examples=80)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*'{}[]()",:\\ \n<>', "é", "", ", ", '": ']))),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_a_damaged_answer_adds_up_as_well(one, damages, places):
    name, text = one
    for place, what in damages:
        text = text[: place % len(text)] + what + text[place % len(text) + 1 :]
    check(name, cut(text, places))
    check(name, [*text], is_complete=False)


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    return Walker(write_model(tmp_path_factory.mktemp("words") / "model", layers=1), MARKS)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_random_calls_of_every_family_add_up(walker, name):
    properties = FLAT if name == "function_gemma" else {**FLAT, **NESTED}
    tools = [weather(properties, **DEFINITIONS), NOW]
    lark = Lark(walker.grammars.special_tokens())
    grammar = lark.grammar(calls(syntax_of(name)[0], lark, tools, is_parallel=True))
    texts = [text for seed in range(3) if (text := walker.walk(grammar, seed)) is not None]
    assert texts
    dice = random.Random(name)
    for text in texts:
        for pieces in ([*text], *(cut(text, dice.choices(range(len(text)), k=5)) for _ in range(5))):
            check(name, pieces, tools=tools)


@pytest.mark.parametrize(("name", "text"), TEXTS[: len(FAMILIES)], ids=IDS)
def test_every_family_tells_name_and_arguments_before_the_call_has_ended(name, text):
    one = reader(name)
    before = text[: text.index("3")]
    parts = [part for character in before for part in one.push(character)]
    ((_, called, known),) = added_up(parts)
    assert (called, known.replace(" ", "")[:15]) == ("weather", '{"city":"Paris"')
    rest = [part for character in text[len(before) :] for part in one.push(character)]
    assert added_up([*parts, *rest, *one.finish(is_complete=True)])[0][2] == '{"city": "Paris", "days": 3}'


def test_a_long_text_is_told_character_by_character_and_read_once():
    one = reader("json_tools")
    one.push('<tool_call>{"name": "weather", "arguments": {"city": "')
    for character in "x" * 5000:
        assert one.push(character) == [ArgumentsPart(0, character)]
    assert one.push('", ') == [ArgumentsPart(0, '", ')]


def test_of_very_many_listed_arguments_the_rest_is_told_at_the_end():
    arguments = "".join(f"<parameter=a{number}>\n{number}\n</parameter>\n" for number in range(2 * MAX_ARGUMENTS))
    text = f"<tool_call>\n<function=weather>\n{arguments}</function>\n</tool_call>"
    one = reader("qwen3_coder")
    told = [part for character in text for part in one.push(character) if isinstance(part, ArgumentsPart)]
    assert len(told) == MAX_ARGUMENTS + 1
    assert len(json.loads("".join(part.text for part in told))) == 2 * MAX_ARGUMENTS


def test_without_parallel_calls_only_the_first_is_told_early():
    one = reader("pythonic", is_parallel=False)
    told = added_up(parts_of(one, [*'<|tool_call_start|>[weather(city="a"), weather(city="b")]<|tool_call_end|>']))
    assert [arguments for _, _, arguments in told] == ['{"city": "a"}']


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "qwen3_coder",
            (
                "<tool_call><function=weather><parameter=city>Paris</parameter></function>"
                "<function=now><parameter=zone>UTC</parameter></function></tool_call>"
            ),
        ),
        (
            "function_gemma",
            (
                "<start_function_call>call:weather{city:<escape>Paris<escape>}call:now{zone:<escape>UTC<escape>}"
                "<end_function_call>"
            ),
        ),
        ("pythonic", '<|tool_call_start|>[weather(city="""a", days=2, b""", days=3)]<|tool_call_end|>'),
        ("pythonic", '<|tool_call_start|>[weather(city="a\\nb", days=3 or so)]<|tool_call_end|>'),
    ],
)
def test_nothing_is_told_early_that_the_whole_call_is_not(name, text):
    whole = added_up(parts_of(reader(name, is_early=False), [text]))
    assert len(whole) == 1
    assert added_up(parts_of(reader(name), [*text])) == whole


def test_a_kimi_call_has_its_own_id_from_its_first_delta_on():
    text = next(text for name, text in TEXTS if name == "kimi_k2")
    (first, *_) = parts_of(reader("kimi_k2"), [*text])
    assert first == CallPart(0, "functions.weather:0", "weather", "")


def test_a_broken_call_is_left_open_and_its_text_is_content():
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Paris", oops}}</tool_call>'
    parts = parts_of(reader("json_tools"), [*text])
    assert [arguments for _, _, arguments in added_up(parts)] == ['{"city": "Paris", ']
    assert content(parts) == text


def streamed(name: str, pieces: Sequence[Piece]) -> tuple[str, dict[int, list[str]], list[str]]:
    """Return content, calls and finish reasons of a stream as a client of OpenAI's adds them up."""
    stream = Stream(
        Envelope("chat", "x", 0, "m"), 1, has_logprobs=False, include_usage=False, new_reader=partial(reader, name)
    )
    text, calls_told, finishes = "", {}, []
    for line in b"".join(stream.add([piece]) for piece in pieces).decode().split("\n\n"):
        if not line.startswith("data: "):
            continue
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        text += choice["delta"].get("content") or ""
        finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                assert call["type"] == "function"
                calls_told[call["index"]] = [call["function"]["name"], ""]
            calls_told[call["index"]][1] += call["function"]["arguments"]
    return text, calls_told, finishes


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_events_add_up_to_the_answer_that_does_not_stream(finish):
    text = "Let me look. " + TEXTS[1][1]
    if finish == "length":
        text = text[: text.index("Rome")]
    pieces = [Piece(0, character, None) for character in text[:-1]] + [Piece(0, text[-1], finish)]
    said, told, finishes = streamed("json_tools", pieces)
    whole = Whole(
        Envelope("chat", "x", 0, "m"), 1, has_logprobs=False, new_reader=partial(reader, "json_tools", is_early=False)
    )
    whole.add(pieces)
    (choice,) = whole.body(Usage(1, 1))["choices"]
    assert said == choice["message"]["content"] == "Let me look."
    expected = [[call["function"]["name"], call["function"]["arguments"]] for call in choice["message"]["tool_calls"]]
    assert list(told.values()) == expected
    assert finishes == [choice["finish_reason"]] == ["tool_calls" if finish == "stop" else "length"]
    if finish == "length":
        assert told[1] == ["weather", '{"city": "']


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    ),
    st.lists(st.integers(0, 200), max_size=8),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_json_is_told_as_it_is_written_again(value, places, is_ascii, indent):
    text = json.dumps({"value": value}, ensure_ascii=is_ascii, indent=indent)
    one = JsonText()
    behind = "".join(one.push(piece) for piece in cut(f"{text} behind", places) if not one.is_over)
    assert one.is_over
    assert "".join(one.pieces) + "}" == json.dumps({"value": value}, ensure_ascii=False)
    assert " behind".startswith(behind)


@pytest.mark.parametrize(
    "text",
    ["[1]", '{"a": tru }', '{"a" 1}', '{"a": 1,}', '{"a": NaN}', '{"a": 1e999}', '{"a": 01}', '{"a": "\\x"}', "{1: 2}",
     '{"a": "\\udc00"}', '{"a": "\\ud83dx"}', '{"a": "\\u00g0"}', '{"a": "\n"}', '{"a": 1, "a": 2}', '{"a": [1}',
     '{"a": ' + "9" * 999],
)  # fmt: skip
def test_what_is_no_json_or_changes_when_it_is_written_again_fails(text):
    one = JsonText()
    one.push(text)
    assert one.has_failed
    assert not one.is_over
    assert one.push("}") == ""
