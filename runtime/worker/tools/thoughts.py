"""Pure: an answer's text, in pieces, becomes what the model thought and what it says; no text but the marks is lost.

Models that think do so between two marks at the beginning of an answer; for some the template has written the first one
at the end of the prompt. Clients get the thoughts as `reasoning_content`, as from vLLM and llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class ThoughtReader:
    """Reads one answer."""

    start: str
    """Opens the thoughts."""
    end: str
    """Closes them."""
    is_open: bool
    """Whether the prompt has opened them already."""
    _held: str = ""
    _place: Literal["before", "inside", "gap", "behind"] = "before"
    """`gap` is the blank between the thoughts and what is said."""

    def push(self, text: str) -> tuple[str, str]:
        """Take a piece; return the thoughts and the rest of the answer that are now certain."""
        if self._place == "behind":
            return "", text
        self._held += text
        thoughts = ""
        if self._place == "before":
            self._begin()
        if self._place == "inside":
            thoughts = self._think()
        if self._place == "gap":
            self._held = self._held.lstrip()
            self._place = "behind" if self._held else "gap"
        return thoughts, self._take(len(self._held)) if self._place == "behind" else ""

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the answer."""
        held = self._take(len(self._held))
        is_thought = self._place == "inside" or (self._place == "before" and self.is_open)
        return (held, "") if is_thought else ("", held)

    def _begin(self) -> None:
        """Tell whether the answer begins with thoughts, as soon as that is certain."""
        blank = len(self._held) - len(self._held.lstrip())
        begun = self._held[blank:]
        if begun.startswith(self.start):
            self._take(blank + len(self.start))
            self._place = "inside"
        elif self.is_open and not self.start.startswith(begun):
            self._place = "inside"
        elif not self.is_open and not self.start.startswith(begun):
            self._place = "behind"

    def _think(self) -> str:
        at = self._held.find(self.end)
        if at < 0:
            return self._take(len(self._held) - _overlap(self._held, self.end))
        thoughts = self._take(at)
        self._take(len(self.end))
        self._place = "gap"
        return thoughts

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _overlap(text: str, mark: str) -> int:
    """Return how much of the end of `text` may be the beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(mark[:length])), 0)
