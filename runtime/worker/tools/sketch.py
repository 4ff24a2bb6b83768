"""Pure: what is certain of tool calls while a model still writes them: their names, and how their arguments begin.

Where a family writes arguments as JSON, they are followed character by character. Where it lists them in another
syntax, each is told when it has ended: what was written so far, closed as the family closes a call, is given to its
parser.

Nothing here decides what a call is. That does the family's parser when the call is whole, and it wins where a sketch
was wrong.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.worker.tools.json_text import JsonText
from runtime.worker.tools.reading import Call

MAX_OPENING = 512
"""Characters within which a call has to begin so that it is told early; names have up to 128."""
MAX_ARGUMENTS = 64
"""Listed arguments that are told one by one; each costs a parse of all before it."""


@dataclass(slots=True)
class Begun:
    """A call whose name is known. `id` is the model's own, where its family has any."""

    name: str
    id: str | None = None
    pieces: list[str] = field(default_factory=list)
    """The beginning of the arguments' JSON, as far as it is certain. It never has the closing brace."""
    rest: str | None = None
    """What is missing behind the pieces of a call that has ended, the closing brace at least.

    None while the call is written, and where only the family's parser knows.
    """


class Follower(Protocol):
    """Follows the arguments of one call."""

    @property
    def has_failed(self) -> bool:
        """Tell whether what is written cannot become arguments any more."""
        ...

    def push(self, text: str) -> str | None:
        """Take more of the answer; return what stands behind the arguments once they have ended."""
        ...


Follow = Callable[[Begun, str], Follower]
"""Makes what follows a call that begins with this text."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a family writes calls. The groups `name` and `id` of `opening` are what they are called."""

    opening: re.Pattern[str]
    """Matches from the end of the call before, or from the opening mark, up to where the arguments begin."""
    follow: Follow
    is_single: bool = False
    """The family's parser reads one call behind a mark: what looks like another one is told when the whole is read."""


@dataclass(slots=True)
class Sketch:
    """Follows what is written behind one opening mark: a call, or several."""

    forms: Sequence[Form]
    names: frozenset[str]
    """Of the functions that may be called. Others are told when they are whole: they are often no calls at all."""
    calls: list[Begun] = field(default_factory=list)
    _rest: str = ""
    _follower: Follower | None = None
    _is_lost: bool = False

    @property
    def is_sound(self) -> bool:
        """Tell whether all that was written is calls, the last of them perhaps not whole."""
        has_failed = self._follower is not None and self._follower.has_failed
        return bool(self.calls) and not self._is_lost and not has_failed

    def push(self, text: str) -> None:
        """Take more of the answer."""
        while not self._is_lost and text:
            if self._follower is None:
                text = self._begin(text)
            else:
                behind = self._follower.push(text)
                if behind is None:
                    return
                self._follower, text = None, behind

    def _begin(self, text: str) -> str:
        """Look for a call's name; return what stands behind it."""
        self._rest += text
        for form in self.forms:
            found = form.opening.match(self._rest, 0, 4 * MAX_OPENING)
            if found is None:
                continue
            if found["name"] not in self.names or (form.is_single and self.calls):
                break
            call = Begun(found["name"], found.groupdict().get("id"))
            self.calls.append(call)
            self._follower = form.follow(call, found[0])
            behind, self._rest = self._rest[found.end() :], ""
            return behind
        else:
            self._is_lost = len(self._rest) > MAX_OPENING
            return ""
        self._is_lost = True
        return ""


@dataclass(slots=True)
class JsonFollower:
    """Follows arguments that are one JSON object."""

    call: Begun
    _json: JsonText = field(init=False)

    def __post_init__(self) -> None:
        self._json = JsonText(self.call.pieces)

    @property
    def has_failed(self) -> bool:
        """Tell whether it is no JSON."""
        return self._json.has_failed

    def push(self, text: str) -> str | None:
        """Take more of the answer."""
        behind = self._json.push(text)
        if not self._json.is_over:
            return None
        self.call.rest = "}"
        return behind


@dataclass(slots=True)
class ListFollower:
    """Follows arguments that are listed, each in the syntax of its family."""

    call: Begun
    find: "Finder"
    read: Callable[[str], list[Call]]
    """Reads whole calls."""
    closing: str
    """Makes a whole call of one whose last argument has ended."""
    unsure: str = ""
    """From the first of these on, only the whole call tells what the arguments are; empty where there is no such."""
    text: str = ""
    """The call, from its beginning."""
    _tries: int = 0
    _told: str = ""

    @property
    def has_failed(self) -> bool:
        """Tell False: half an argument may become any."""
        return False

    def push(self, text: str) -> str | None:
        """Take more of the answer."""
        self.text += text
        for end in self.find.arguments(self.text):
            self._tell(self.text[:end])
        if self.find.behind is None:
            return None
        arguments = self._arguments(self.text[: self.find.end])
        if arguments is not None and arguments.startswith(self._told):
            self.call.rest = arguments[len(self._told) :]
        return self.text[self.find.behind :]

    def _tell(self, text: str) -> None:
        self._tries += 1
        if self._tries > MAX_ARGUMENTS:
            return
        known = (self._arguments(text) or "").removesuffix("}")
        if known.startswith(self._told) and known != self._told:
            self.call.pieces.append(known[len(self._told) :])
            self._told = known

    def _arguments(self, text: str) -> str | None:
        """Return the arguments of a call that ends here; None where that is not certain."""
        if self.unsure and self.unsure in text:
            return None
        calls = self.read(text + self.closing)
        return calls[0].arguments if len(calls) == 1 and calls[0].name == self.call.name else None


class Finder(Protocol):
    """Finds in a growing text where arguments have ended, and their call."""

    end: int
    """Where what closes the call begins, once it is there."""
    behind: int | None
    """Where the text behind the call begins, once it is there."""

    def arguments(self, text: str) -> Iterator[int]:
        """Yield where arguments have ended since the last look."""
        ...


@dataclass(slots=True)
class MarkFinder(Finder):
    """For arguments and calls that end with marks, wherever these stand."""

    argument_end: str
    call_end: str
    """Empty where nothing but the family's end mark ends a call."""
    end: int = 0
    behind: int | None = None
    _searched: int = 0

    def arguments(self, text: str) -> Iterator[int]:
        """Yield where arguments have ended since the last look."""
        while self.behind is None:
            end, call_end = self._find(text, self.argument_end), self._find(text, self.call_end)
            if call_end is not None and (end is None or call_end < end):
                self.end, self.behind = call_end - len(self.call_end), call_end
            elif end is not None:
                self._searched = end
                yield end
            else:
                longest = max(len(self.argument_end), len(self.call_end))
                self._searched = max(self._searched, len(text) - longest + 1)
                return

    def _find(self, text: str, mark: str) -> int | None:
        at = text.find(mark, self._searched) if mark else -1
        return None if at < 0 else at + len(mark)


@dataclass(slots=True)
class CommaFinder(Finder):
    """For arguments with commas between them, outside of texts and brackets; a bracket more closes the call."""

    begin: int
    """Where the arguments begin."""
    quotes: tuple[str, ...]
    """Each stands on both sides of a text; one that begins like another stands before it."""
    has_escapes: bool = False
    """A backslash takes the meaning of the character behind it."""
    end: int = 0
    behind: int | None = None
    _depth: int = 0
    _quote: str = ""

    def arguments(self, text: str) -> Iterator[int]:
        """Yield where arguments have ended since the last look."""
        while self.behind is None and self.begin < len(text):
            at = self.begin
            if self.has_escapes and self._quote and text[at] == "\\":
                self.begin += 2
                continue
            # Inside of a text the others are characters like any.
            quotes = (self._quote,) if self._quote else self.quotes
            if any(quote.startswith(text[at : at + len(quote)]) and at + len(quote) > len(text) for quote in quotes):
                return  # the quote may still become whole
            quote = next((quote for quote in quotes if text.startswith(quote, at)), "")
            self.begin += len(quote) or 1
            if self._quote:
                self._quote = "" if quote else self._quote
            elif quote:
                self._quote = quote
            elif text[at] in "([{":
                self._depth += 1
            elif text[at] in ")]}":
                self._depth -= 1
                if self._depth < 0:
                    self.end, self.behind = at, at + 1
            elif text[at] == "," and not self._depth:
                yield at
