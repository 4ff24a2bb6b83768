"""Pure: parts of llguidance's grammar language, Lark with JSON Schemas and special tokens in it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_GRAMMAR_BYTES = 256 * 1024
"""Of a serialised grammar. One of this size whose 2,000 properties each have a pattern takes 0.7 s to compile."""
_SPACE = r"( |\r?\n[ \t]{0,40})?"
"""What may stand between two JSON tokens: enough for every usual layout, and no place to lose oneself in blanks."""

_ANY = r"/(.|\n)*/"


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
        return self.rule("%json " + json.dumps({**schema, "x-guidance": options}))

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

        Special tokens may stand anywhere. Raises ValueError where the opener is special in a part of it only: nothing
        tells what such tokens begin.
        """
        special = sorted(index for text, index in self._special.items() if text != opener)
        if opener not in self._special and self._split and self._split.search(opener):
            raise ValueError("its calls begin with several special tokens")
        name = f"TEXT{len(self._rules)}"
        self._add(f"{name}: /(.|\\n)+/ & ~/(.|\\n)*{_escaped(opener)}(.|\\n)*/")
        begin = f"{name}? {self.text(opener)}" if opener in self._special else self.until(opener)
        # Two texts never follow each other: an opener could be hidden where they meet.
        parts = [f"{begin} {call}", *([f"{name}? <[{','.join(map(str, special))}]>"] if special else [])]
        return f"({' | '.join(parts)})* {name}?"

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


def _escaped(text: str) -> str:
    """Return a regular expression of llguidance's for exactly this text."""
    return re.escape(text).replace("/", "\\/").replace('"', '\\"')
