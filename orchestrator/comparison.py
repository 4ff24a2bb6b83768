"""Pure: whether what a group answers to a known prompt is what one process answers.

A group adds up the same numbers in another order, so that two tokens which are all but equally probable may change
places; behind such a place the answers go apart and can no longer be compared. It is asked again from there, with the
token that one process has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.canary import ReferenceAnswer

EXCERPT = 40
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a group has answered."""

    tokens: tuple[int, ...]
    """The end token included."""
    text: str
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Same:
    """The answer is that of one process."""

    firm: int
    """Places where no other token would have been right."""


@dataclass(frozen=True, slots=True)
class Tie:
    """The group has chosen another token, as it may; behind `position` nothing is compared yet."""

    position: int
    firm: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The group computes something else."""

    position: int
    """Counts from 0, in the answer of one process."""
    expected: str
    got: str


def compare(answer: ReferenceAnswer, heard: Heard, start: int = 0) -> Same | Tie | Difference:
    """Compare an answer with that of one process; `start` of its tokens were given to the group with the prompt."""
    expected = answer.tokens[start:]
    firm = 0
    for offset, (want, got) in enumerate(zip(expected, heard.tokens, strict=False)):
        if got == want.token:
            firm += len(want.near) == 1
        elif got in want.near or not want.near:
            return Tie(start + offset, firm)
        else:
            return _difference(answer, heard, start, start + offset)
    if len(heard.tokens) != len(expected):
        return _difference(answer, heard, start, start + min(len(heard.tokens), len(expected)))
    return Same(firm)


def _difference(answer: ReferenceAnswer, heard: Heard, start: int, position: int) -> Difference:
    def before(place: int) -> str:
        return answer.tokens[place - 1].text if place else ""

    expected = answer.tokens[-1].text[len(before(position)) :]
    alike = len(before(position)) - len(before(start))
    return Difference(position, expected[:EXCERPT], heard.text[alike:][:EXCERPT])


def rest_of(answer: ReferenceAnswer, tie: Tie) -> tuple[tuple[int, ...], int]:
    """Return the prompt with which a group goes on behind a tie, and how many tokens are left to compare."""
    done = tie.position + 1
    return (*answer.prompt, *(token.token for token in answer.tokens[:done])), len(answer.tokens) - done


def difference_words(name: str, prompt_tokens: int, difference: Difference, *, together: int = 1) -> str:
    """Say what differs: the prompt, the place, what was expected and what came."""
    where = f"prompt {name!r} ({prompt_tokens} tokens" + (f", with {together - 1} others)" if together > 1 else ")")
    place = f"from token {difference.position + 1} on"
    return f"{where}: {place} expected {difference.expected!r}, got {difference.got!r}"


def disagreement(alone: Sequence[Heard], together: Sequence[Heard]) -> tuple[int, int]:
    """Return how many answers began alike alone and in a batch, of how many: all that can be said without a reference.

    Only the first token counts: behind it rounding alone may lead to another answer.
    """
    alike = sum(one.tokens[:1] == other.tokens[:1] for one, other in zip(alone, together, strict=True))
    return alike, len(alone)
