"""Pure: the canary of a sharded group: its prompts, and what one process answers to them."""

from __future__ import annotations

from itertools import count
from typing import Literal

from schemas.base import Frozen
from schemas.messages import WorkerVersions

PROMPTS_VERSION = 1
"""Raised with every change of the prompts, of ANSWER_TOKENS or of TIE: older answers of one process are made again."""
ANSWER_TOKENS = 16
"""The longest answer, in tokens: a rank that computes wrongly shows in the first few."""
TIE = 0.5
"""Nats. Tokens whose log-probabilities are closer to the best one's than this may be chosen instead of it.

A group adds the same numbers in another order. With weights in bfloat16 logits of 16 to 32 are 0.125 apart, and both
tokens of a pair can be off by one such step in either direction: 0.5 is the most that rounding makes of a tie.
"""
MOST_NEAR = 32
"""Where more tokens than this are that close to the best one, the model does not know: any token is right."""

SHORT_PROMPTS = {
    "capital": "The capital of France is",
    "count": "1, 2, 3, 4, 5, 6, 7,",
    "alphabet": "a b c d e f g h i j",
    "code": "def add(a, b):\n    return",
}
LONG_PROMPT = "long"
_COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "grey")
_PEOPLE = ("a baker", "a doctor", "a sailor", "a teacher", "a painter", "a farmer", "a singer")


def long_text(words: int) -> str:
    """Return a text of at least `words` words, the same every time, whose end asks for something said before it."""
    houses: list[str] = []
    length = 0
    for number in count(1):
        colour, person = _COLOURS[number * 5 % len(_COLOURS)], _PEOPLE[number * 3 % len(_PEOPLE)]
        houses.append(f"House {number} has a {colour} door and belongs to {person}.")
        length += 11
        if length >= words:
            asked = max(1, number - 3)
            return " ".join([*houses, f"Which colour is the door of house {asked}? House {asked} has a"])
    raise AssertionError("count does not end")


class ReferenceToken(Frozen):
    """One token of an answer of one process."""

    token: int
    near: tuple[int, ...]
    """The tokens that may stand here instead, see TIE; the best one first. Empty: any may, see MOST_NEAR."""
    margin: float
    """By how many nats it is more probable than the next one."""
    text: str
    """The answer up to and with it."""


class ReferenceAnswer(Frozen):
    """What one process answers to one prompt, always taking the most probable token."""

    name: str
    prompt: tuple[int, ...]
    """Its tokens."""
    tokens: tuple[ReferenceToken, ...]
    ended: bool
    """Its last token is an end token; else it was cut off at ANSWER_TOKENS."""


class Reference(Frozen):
    """The answers of one process to all prompts."""

    version: Literal[1] = 1
    prompts_version: int
    versions: WorkerVersions
    files: dict[str, str]
    """SHA-256 of every weights file that it has read, by name."""
    answers: tuple[ReferenceAnswer, ...]

    @property
    def longest(self) -> int:
        """Return the tokens of the longest prompt."""
        return max(len(answer.prompt) for answer in self.answers)


class ReferenceProgress(Frozen):
    """How far the making of a reference is."""

    phase: str
    done: int
    total: int
    unit: str
