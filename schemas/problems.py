"""Pure: what is wrong with a configuration, as data: where, what was found, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from schemas.base import Reported


class Problem(Reported):
    """One thing that keeps a configuration from being used."""

    file: str
    """The file it stands in, or `command line` for an override."""
    line: int | None = None
    """The line in that file, counted from 1."""
    key: str = ""
    """The dotted key, empty where the file as a whole is meant."""
    message: str
    """What is wrong and what would be right, in one sentence."""
    suggestion: str | None = None
    """The nearest valid name."""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        hint = f"; did you mean '{self.suggestion}'?" if self.suggestion else ""
        return f"{where}: {self.key + ': ' if self.key else ''}{self.message}{hint}"


class ConfigurationError(Exception):
    """A stack cannot be used; carries every problem found, in file order. Nothing was changed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the valid name closest to a misspelt one, or None where nothing is close."""
    matches = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.6)
    return matches[0] if matches else None
