"""Pure: an answer's text, in pieces, becomes content and tool calls; no text is ever lost.

What may become a mark is held back, and so is what stands between marks until it is known to be a call. A text between
marks that does not parse is content, marks and all.

With a sketch, a call is told from its name on, while it is written, where the answer streams. One that then turns out
to be none is left as it is: its arguments have no closing brace, which is told only once the family's parser has read
the whole call. Its text is content all the same, so that contents never depend on how an answer is sent.

An answer that ends inside of a call, cut off by `max_tokens` for one, tells the call as far as it got, streaming or
not, and its text is no content. So does OpenAI's API, whose client raises `LengthFinishReasonError` before it parses
the arguments of such an answer (openai 3.54, `lib/_parsing/_completions.py`). vLLM agreed in its pull request 46303:
the finish is `length`, in streams too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.worker.tools.reading import PYTHON_TAG, Call
from runtime.worker.tools.sketch import Begun, Sketch

_MAX_TRIES = 8
"""How many end marks one call may hold, in its texts, before it counts as no call: each costs a parse of it all."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A tool call, the `index`-th of its answer from 0. `arguments` is whole, but for one that is told early."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """More of the arguments of a call that was told early."""

    index: int
    text: str


Part = Text | CallPart | ArgumentsPart


@dataclass(slots=True)
class _Told:
    """A call that was told early."""

    index: int
    pieces: int = 0
    """How many pieces of its arguments."""


@dataclass(slots=True)
class CallReader:
    """Reads one answer."""

    start: str
    """Opens a call; empty where an answer is a call or none from its first character on, which is a brace."""
    end: str
    """Closes it; empty where the end of the answer does."""
    parse: Callable[[str], list[Call]]
    """Takes what stands between the marks; none means that it is no call."""
    new_id: Callable[[], str]
    is_parallel: bool = True
    """Otherwise only the first call is told, and nothing behind it."""
    sketch: Callable[[], Sketch] | None = None
    """Makes what follows the calls behind one opening mark; none tells calls only when they are whole."""
    tells_early: bool = True
    """Otherwise the sketch serves only for an answer that ends inside of a call."""
    must_call: bool = False
    """Nothing but calls was allowed: what is left of an answer that was cut off is half a mark, and no content."""
    has_form: bool = False
    """So it is behind a first call: the answer was to be calls or something else, not both."""
    calls: int = 0
    """How many whole ones there were so far."""
    is_cut: bool = False
    """The answer has ended inside of a call, which was told as far as it got."""
    _held: str = ""
    _inner: int = 0
    """Where in `_held` the text between the marks begins; 0 outside of them."""
    _searched: int = 0
    """Up to where `_held` holds no end mark of a call that parses, and no whole mark of another call."""
    _tries: int = 0
    _is_plain: bool = False
    """The answer did not begin with a brace, where only such an answer is a call."""
    _ids: set[str] = field(default_factory=set)
    _index: int = 0
    """Of the next call that is told."""
    _sketch: Sketch | None = None
    """Of the calls behind the mark that is open."""
    _sketched: int = 0
    """Up to where `_held` was given to it."""
    _told: list[_Told] = field(default_factory=list)
    """The calls behind that mark that were told early, in their order."""

    def push(self, text: str) -> list[Part]:
        """Take a piece; return what is now certain."""
        self._held += text
        parts: list[Part] = []
        while self._inside(parts) if self._inner else self._outside(parts):
            pass
        if self._inner and self.tells_early:
            self._tell_early(parts, self._followed())
        return parts

    def finish(self, *, is_complete: bool) -> list[Part]:
        """Return what was held back, at the end of the answer.

        Not `is_complete` means that the answer was cut off: a call without its end mark is not whole then, although
        some parsers make a call of a part of one.
        """
        parts: list[Part] = []
        if self._inner and (is_complete or not self.end):
            self._take(parts, len(self._held), len(self._held))
        if self._inner:
            self._tell_cut(parts)
        if not is_complete and (self.must_call or (self.has_form and self.calls)):
            self._held = ""
        self._leave()
        if self._held.strip() or not self.calls:
            self._tell(parts, len(self._held))
        return parts

    def _outside(self, parts: list[Part]) -> bool:
        """Look for a call; tell whether one begins."""
        if self.calls and not self.is_parallel:
            self._held = ""
            return False
        if not self.start:
            return self._begins_bare(parts)
        at = self._held.find(self.start)
        if at >= 0:
            self._tell(parts, len(self._held[:at].rstrip()))
            self._begin(self._held.index(self.start) + len(self.start))
            return True
        certain = self._held[: len(self._held) - _overlap(self._held, self.start)]
        self._tell(parts, len(certain.rstrip()))
        return False

    def _begins_bare(self, parts: list[Part]) -> bool:
        text = self._held.lstrip()
        if self.calls or self._is_plain or not text:
            self._tell(parts, len(self._held) if text else 0)
            return False
        if text.startswith(("{", PYTHON_TAG)):
            self._begin(len(self._held) - len(text) + 1)
            return True
        if not PYTHON_TAG.startswith(text):
            self._is_plain = True
            self._tell(parts, len(self._held))
        return False

    def _begin(self, inner: int) -> None:
        self._inner = self._searched = inner
        self._sketched = inner if self.start else inner - 1
        self._sketch = None if self.sketch is None else self.sketch()
        self._tries = 0

    def _leave(self) -> None:
        """Go on outside of the marks."""
        self._inner = 0
        self._sketch = None
        self._told.clear()

    def _inside(self, parts: list[Part]) -> bool:
        """Look for the end of the call; tell whether the text goes on outside of it."""
        if not self.end:
            return False
        at = self._held.find(self.end, self._searched)
        if self._tries:
            # An end mark inside a call is a text of its arguments; another start mark means that it was no call.
            again = self._held.find(self.start, self._searched)
            if again >= 0 and (at < 0 or again < at):
                self._give_up(parts, again)
                return True
        if at < 0:
            self._searched = max(self._searched, len(self._held) - max(len(self.start), len(self.end)) + 1)
            return False
        behind = at + len(self.end)
        if self._take(parts, at, behind):
            return True
        self._tries += 1
        self._searched = behind
        if self._tries == _MAX_TRIES:
            self._give_up(parts, behind)
        return True

    def _give_up(self, parts: list[Part], behind: int) -> None:
        self._leave()
        self._tell(parts, behind)

    def _take(self, parts: list[Part], at: int, behind: int) -> bool:
        """Read what stands between the marks; tell whether it is a call."""
        inner = self._inner if self.start else self._inner - 1
        calls = self.parse(self._held[inner:at])
        for number, call in enumerate(calls if self.is_parallel else calls[:1]):
            if not self._complete(parts, number, call):
                call_id = self._id_of(call.id)
                parts.append(CallPart(self._index, call_id, call.name, call.arguments))
                self._index += 1
            self.calls += 1
        if calls:
            self._held = self._held[behind:]
            self._leave()
        return bool(calls)

    def _complete(self, parts: list[Part], number: int, call: Call) -> bool:
        """Tell the rest of a call that was told early; False where that was not this one, or nothing was told."""
        if self._sketch is None or number >= len(self._told):
            return False
        begun, told = self._sketch.calls[number], self._told[number]
        known = "".join(begun.pieces[: told.pieces])
        if begun.name != call.name or not call.arguments.startswith(known):
            return False
        parts.append(ArgumentsPart(told.index, call.arguments[len(known) :]))
        return True

    def _followed(self) -> Sequence[Begun]:
        """Return the calls that are being written, as far as they are to be told."""
        if self._sketch is None:
            return ()
        self._sketch.push(self._held[self._sketched :])
        self._sketched = len(self._held)
        return self._sketch.calls if self.is_parallel else self._sketch.calls[:1]

    def _tell_cut(self, parts: list[Part]) -> None:
        """Tell the calls inside of which the answer has ended; what is no call stays held, to be content."""
        calls = self._followed()
        if self._sketch is None or not self._sketch.is_sound:
            return
        self._tell_early(parts, calls)
        for call, told in zip(calls, self._told, strict=True):
            if call.rest is None:
                self.is_cut = True
            else:
                parts.append(ArgumentsPart(told.index, call.rest))
                self.calls += 1
        self._held = ""

    def _tell_early(self, parts: list[Part], calls: Sequence[Begun]) -> None:
        """Tell what is certain of calls that are not known to be whole."""
        for number, call in enumerate(calls):
            if number == len(self._told):
                self._told.append(_Told(self._index))
                parts.append(CallPart(self._index, self._id_of(call.id), call.name, ""))
                self._index += 1
            told = self._told[number]
            if text := "".join(call.pieces[told.pieces :]):
                parts.append(ArgumentsPart(told.index, text))
                told.pieces = len(call.pieces)

    def _id_of(self, own: str | None) -> str:
        """Return the id of a call: the model's own, unless there is none or another call has it."""
        call_id = own if own is not None and own not in self._ids else self.new_id()
        self._ids.add(call_id)
        return call_id

    def _tell(self, parts: list[Part], length: int) -> None:
        """Let the first `length` characters go as content."""
        if length:
            parts.append(Text(self._held[:length]))
            self._held = self._held[length:]


def _overlap(text: str, mark: str) -> int:
    """Return how much of the end of `text` may be the beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(mark[:length])), 0)
