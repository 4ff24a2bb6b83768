"""Whether an answer is that of one process, up to what rounding may change."""

from __future__ import annotations

import pytest

from orchestrator.comparison import Difference, Heard, Same, Tie, compare, difference_words, disagreement, rest_of
from schemas.canary import LONG_PROMPT, SHORT_PROMPTS, Reference, ReferenceAnswer, ReferenceToken, long_text

WORDS = (" Paris", ".", " It", " is")


def answer(*near: tuple[int, ...]) -> ReferenceAnswer:
    """Return an answer of the tokens 0, 1, 2, ...; `near` says by position what may stand there instead."""
    tokens = tuple(
        ReferenceToken(token=n, near=near[n] if n < len(near) else (n,), margin=1.0, text="".join(WORDS[: n + 1]))
        for n in range(4)
    )
    return ReferenceAnswer(name="capital", prompt=(7, 8, 9), tokens=tokens, ended=False)


def heard(*tokens: int, text: str = "") -> Heard:
    return Heard(tokens, text)


def test_the_same_tokens_are_the_same_answer_and_sure_places_are_counted() -> None:
    assert compare(answer((0,), (1, 5)), heard(0, 1, 2, 3)) == Same(firm=3)


def test_another_token_where_one_process_was_sure_is_a_difference() -> None:
    found = compare(answer(), heard(0, 1, 6, 3, text=" Paris. The is"))
    assert found == Difference(2, " It is", " The is")


@pytest.mark.parametrize("near", [(1, 6), ()], ids=["a near tie", "anything goes"])
def test_another_token_that_was_as_probable_is_a_tie(near: tuple[int, ...]) -> None:
    assert compare(answer((0,), near), heard(0, 6, 4, 4)) == Tie(1, firm=1)


def test_a_token_that_is_not_among_the_probable_ones_is_a_difference_also_at_a_tie() -> None:
    assert isinstance(compare(answer((0,), (1, 6)), heard(0, 5, 2, 3)), Difference)


def test_behind_a_tie_the_group_is_asked_with_what_one_process_had_chosen() -> None:
    assert rest_of(answer(), Tie(1, firm=1)) == ((7, 8, 9, 0, 1), 2)
    assert compare(answer(), heard(2, 3), start=2) == Same(firm=2)
    assert compare(answer(), heard(2, 6, text=" It was"), start=2) == Difference(3, " is", " was")


@pytest.mark.parametrize("tokens", [(0, 1), (0, 1, 2, 3, 4)], ids=["too short", "too long"])
def test_an_answer_of_another_length_differs_where_it_should_have_ended_or_gone_on(tokens: tuple[int, ...]) -> None:
    found = compare(answer(), heard(*tokens))
    assert isinstance(found, Difference)
    assert found.position == min(len(tokens), 4)


def test_what_differs_is_said_with_prompt_and_place() -> None:
    words = difference_words("capital", 5, Difference(0, " Paris", " banana"), together=4)
    assert words == "prompt 'capital' (5 tokens, with 3 others): from token 1 on expected ' Paris', got ' banana'"


def test_without_a_reference_only_the_first_tokens_are_compared() -> None:
    assert disagreement([heard(1, 2), heard(3)], [heard(1, 9), heard(4)]) == (1, 2)


def test_the_long_prompt_is_as_long_as_asked_and_always_the_same() -> None:
    text = long_text(3000)
    assert len(text.split()) >= 3000
    assert text == long_text(3000)
    assert text.endswith("has a")


def test_the_longest_prompt_of_a_reference_is_known() -> None:
    versions = {"orchestrate": "1", "python": "3", "mlx": "0", "mlx_lm": "0"}
    data = {"prompts_version": 1, "versions": versions, "files": {}, "answers": ()}
    reference = Reference.model_validate(data).model_copy(update={"answers": (answer(),)})
    assert reference.longest == 3
    assert LONG_PROMPT not in SHORT_PROMPTS
