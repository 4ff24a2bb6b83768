"""Pure: parts of llguidance's grammar language, Lark with JSON Schemas and special tokens in it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.worker.tools.bounds import with_kept_bounds

MAX_GRAMMAR_BYTES = 256 * 1024
"""Of a serialised grammar. One of this size whose 2,000 properties each have a pattern takes 0.7 s to compile."""
_SPACE = r"( |\r?\n[ \t]{0,40})?"
"""What may stand between two JSON tokens: enough for every usual layout, and no place to lose oneself in blanks."""

_ANY = r"/(.|\n)*/"
_SOME = r"/(.|\n)+/"
BLANKS = r"[ \t\r\n]*"
"""A regular expression for the blanks that JSON allows."""


class Lark:
    """Collects the rules of one grammar."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        """`special_tokens` are ids keyed by text: ordinary text of a grammar never matches these tokens."""
        self._special = dict(special_tokens)
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(names)})") if names else None
        self._rules: list[str] = []
        self._size = 0

    def text(self, text: str) -> str:
        """Return an expression for exactly this text."""
        parts = self._split.split(text) if self._split else [text]
        items = [f"<[{self._special[part]}]>" if part in self._special else json.dumps(part) for part in parts if part]
        return " ".join(items) or '""'

    def json(self, schema: Mapping[str, Any], *, is_strict: bool) -> str:
        """Return an expression for a JSON value that a schema allows."""
        options: dict[str, Any] = {"whitespace_pattern": _SPACE}
        if not is_strict:
            options |= {"lenient": True, "coerce_one_of": True}
        return self.rule("%json " + json.dumps({**with_kept_bounds(schema), "x-guidance": options}))

    def until(self, end: str, without: str = "") -> str:
        """Return an expression for any text up to and with `end`, which begins where it first occurs.

        The text has none of the characters of `without`.
        """
        text = f"/[^{re.escape(without)}]*/" if without else _ANY
        if self._split and self._split.match(end):
            # A special token ends it: text cannot contain one.
            return f"{self.rule(text)} {self.text(end)}"
        return self.rule(f"{text} {json.dumps(end)}", is_lazy=True)

    def free(self, opener: str, call: str) -> str:
        """Return an expression for any answer in which `call` follows wherever `opener` stands.

        Special tokens may stand anywhere. Raises ValueError for openers that mix special tokens and text otherwise
        than as a word between two such tokens.
        """
        special = sorted(index for text, index in self._special.items() if text != opener)
        if opener not in self._special and self._split and self._split.search(opener):
            return self._free_between_marks(opener, call)
        name = f"TEXT{len(self._rules)}"
        self._add(f"{name}: {_SOME} & ~/(.|\\n)*{escaped(opener)}(.|\\n)*/")
        begin = f"{name}? {self.text(opener)}" if opener in self._special else self.until(opener)
        # Two texts never follow each other: an opener could be hidden where they meet.
        parts = [f"{begin} {call}", *([f"{name}? <[{','.join(map(str, special))}]>"] if special else [])]
        return f"({' | '.join(parts)})* {name}?"

    def _free_between_marks(self, opener: str, call: str) -> str:
        """Return what `free` does for an opener such as Kimi K3's: a special token, a word, a special token.

        The first one opens other things as well, by other words.
        """
        parts = [part for part in self._split.split(opener) if part] if self._split else []
        if [part in self._special for part in parts] != [True, False, True]:
            raise ValueError("its calls begin with several special tokens")
        first, word, last = parts
        text, other = f"TEXT{len(self._rules)}", f"OTHER{len(self._rules)}"
        self._add(f"{text}: {_SOME}")
        self._add(f"{other}: {_SOME} & ~/{escaped(word)}/")
        one, begin = self.text(first), f"{self.text(first)} {json.dumps(word)}"
        others = self._special.keys() - {first}
        ends = [f"{one} {other}?", f"{self.text(last)} {call} {text}?"]
        if others - {last}:
            ends.append(f"{self._any_of(others - {last})} {text}?")
        # What is begun like a call and is none stands at the end, or something special ends it.
        again = [f"{self._any_of(others)} {text}?", f"{one} {other}?", f"({begin})+ ({' | '.join(ends)})"]
        return f"{text}? ({' | '.join(again)})* ({begin})*"

    def free_or_whole(self, mark: str, calls: Sequence[tuple[str, str]]) -> str:
        """Return an expression for any answer; one that begins with one of `calls` is this call.

        Each call is a regular expression for its beginning and an expression for the rest of it. `mark`, a text, may
        stand before it.
        """
        is_special = mark in self._special
        before = BLANKS if is_special else f"{BLANKS}({escaped(mark)})?{BLANKS}"
        text, first, blank = (f"{name}{len(self._rules)}" for name in ("TEXT", "FIRST", "BLANK"))
        begun = f"{before}({'|'.join(begin for begin, _ in calls)})(.|\\n)*"
        self._add(f"{text}: {_SOME}")
        self._add(f"{first}: {_SOME} & ~/{begun}/ & ~/{BLANKS}/")
        self._add(f"{blank}: {_SOME} & /{BLANKS}/")
        call = one_of([f"{self.rule(f'/{before}{begin}/', is_lazy=True)} {rest}" for begin, rest in calls])
        if not self._special:
            return f"({call} | {first} | {blank}?)"
        more = f"({self._any_of(self._special)} {text}?)*"
        free = [f"{first} {more}"]
        if others := self._special.keys() - {mark}:
            free.append(f"{blank}? {self._any_of(others)} {text}? {more}")
        if is_special:
            opener = f"{blank}? {self.text(mark)}"
            free.append(f"{opener} ({first} | {blank})? {more}")
            call = f"({opener})? {call}"
        return f"({call} | {' | '.join(free)} | {blank}?)"

    def _any_of(self, marks: Iterable[str]) -> str:
        return f"<[{','.join(str(index) for index in sorted(self._special[mark] for mark in marks))}]>"

    def rule(self, body: str, *, is_lazy: bool = False) -> str:
        """Add a rule; return its name. A lazy one ends as early as it can.

        Raises ValueError as soon as the grammar is too large: a schema that refers to its parts can be written out to
        thousands of times its size.
        """
        name = f"r{len(self._rules)}"
        self._add(f"{name}{'[lazy]' if is_lazy else ''}: {body}")
        return name

    def _add(self, rule: str) -> None:
        self._size += len(rule)
        if self._size > MAX_GRAMMAR_BYTES:
            raise ValueError(f"its grammar is larger than {MAX_GRAMMAR_BYTES} bytes")
        self._rules.append(rule)

    def grammar(self, start: str) -> str:
        """Return the grammar whose answers match `start`."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, ""])


def one_of(alternatives: Sequence[str]) -> str:
    """Return an expression for one of several."""
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def escaped(text: str) -> str:
    """Return a regular expression of llguidance's for exactly this text."""
    return re.escape(text).replace("/", "\\/").replace('"', '\\"')
