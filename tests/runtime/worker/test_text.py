"""Detokenising and stop strings do not depend on where tokens are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from runtime.worker.text import ByteDetokenizer, StopMatcher, WindowDetokenizer, byte_level_table


def first_stop(text: str, stops: list[str]) -> str | None:
    """Return the text before the stop that completes first, by trying every end; None where no stop occurs."""
    for end in range(1, len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            return text[: end - max(map(len, endings))]
    return None


def run_matcher(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    emitted = []
    for piece in pieces:
        text, is_stopped = matcher.push(piece)
        emitted.append(text)
        if is_stopped:
            return emitted, True
    return [*emitted, matcher.flush()], False


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "is_stopped"),
    [
        (["hello"], [], "hello", False),
        (["hel", "lo"], ["lo"], "hel", True),
        (["hel", "lo"], ["low"], "hello", False),
        (["a", "a", "b"], ["ab"], "a", True),
        (["abcd"], ["abcd", "bc"], "a", True),
        (["abc"], ["c", "bc"], "a", True),
        (["xEN", "D"], ["END"], "x", True),
        (["END"], ["END"], "", True),
        (["aab", "aac"], ["aabaac"], "", True),
        (["fin\N{PILE OF POO}"], ["\N{PILE OF POO}"], "fin", True),
    ],
)
def test_matcher_table(pieces: list[str], stops: list[str], text: str, is_stopped: bool) -> None:
    emitted, stopped = run_matcher(pieces, stops)
    assert ("".join(emitted), stopped) == (text, is_stopped)


# A two-letter alphabet makes overlaps and near misses the rule.
_PIECES = st.lists(st.text("ab", max_size=5), max_size=12)
_STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


@given(_PIECES, _STOPS)
def test_any_split_gives_the_text_before_the_stop_that_completes_first(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    expected = first_stop(text, stops)
    emitted, is_stopped = run_matcher(pieces, stops)
    assert is_stopped == (expected is not None)
    assert "".join(emitted) == (text if expected is None else expected)


@given(_PIECES, _STOPS)
def test_nothing_is_emitted_that_may_still_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted = ""
    for count in range(len(pieces)):
        text, is_stopped = matcher.push(pieces[count])
        if is_stopped:
            return
        emitted += text
        held = "".join(pieces[: count + 1])[len(emitted) :]
        # What is held back is exactly the longest ending that begins a stop.
        seen = emitted + held
        longest = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])), default=0)
        assert len(held) == longest


@given(st.text(max_size=60), st.lists(st.integers(0, 240), max_size=20))
def test_byte_detokenizer_gives_whole_characters_for_any_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    table = [data[a:b] for a, b in itertools.pairwise(edges)]
    detokenizer = ByteDetokenizer(table)
    pieces = [detokenizer.push(token) for token in range(len(table))]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


def test_byte_detokenizer_replaces_an_unfinished_character_at_the_end() -> None:
    detokenizer = ByteDetokenizer(["é".encode()[:1]])
    assert detokenizer.push(0) == ""
    assert detokenizer.flush() == "\ufffd"


def test_byte_detokenizer_has_no_text_for_padding_of_the_vocabulary() -> None:
    assert ByteDetokenizer([b"a"]).push(5) == ""


@given(st.text(max_size=40))
def test_byte_level_table_inverts_the_alphabet_of_the_tokenizers_library(text: str) -> None:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = [piece for piece, _ in split.pre_tokenize_str(text)]
    assert b"".join(byte_level_table(spelt, frozenset())) == text.encode()
    assert decoders.ByteLevel().decode(spelt) == text


def test_added_tokens_are_spelt_as_themselves() -> None:
    assert byte_level_table(["Ġé", "Ġé"], frozenset({1})) == [b" \xe9", "Ġé".encode()]


@given(st.text("ab é\N{PILE OF POO}", max_size=30))
def test_window_detokenizer_equals_decoding_everything(text: str) -> None:
    data = text.encode()
    detokenizer = WindowDetokenizer(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_window_detokenizer_does_not_hold_back_broken_bytes_for_ever() -> None:
    detokenizer = WindowDetokenizer(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    pieces = [detokenizer.push(0xFF) for _ in range(20)]
    assert "".join(pieces) + detokenizer.flush() == "\ufffd" * 20
    assert any(pieces)
