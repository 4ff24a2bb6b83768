"""Pure: a JSON object, followed while it is written, becomes the text that `json.dumps` would make of it.

So the pieces of it that are certain can be told before its end is known.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_BLANK = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{4}")
_LITERALS = {"true": "true", "false": "false", "null": "null"}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_MAX_NUMBER = 400
"""Characters of a number that is told while it is written."""


class _NoJsonError(Exception):
    """What was written is no JSON, or not of the kind that keeps its form when it is read and written again."""


@dataclass(slots=True)
class _Open:
    """One object or list that has not ended."""

    is_object: bool
    keys: set[str] = field(default_factory=set)
    expects: str = "first"
    """`first` key or item, or the end; `key`, `colon`, `value`, or what is `behind` a value."""


@dataclass(slots=True)
class JsonText:
    """Follows one object, from its opening brace on."""

    pieces: list[str] = field(default_factory=list)
    """What is certain so far, as `json.dumps` writes it without escaping letters, but for the closing brace."""
    is_over: bool = False
    """The object has ended."""
    has_failed: bool = False
    """It is no JSON, or has a key twice, or half a character: nothing more is certain."""
    _rest: str = ""
    _open: list[_Open] = field(default_factory=list)
    _key: list[str] | None = None
    """The pieces of the key that is being written."""
    _is_text: bool = False
    """Inside a text or a key."""

    def push(self, text: str) -> str:
        """Take more of it; return what stands behind its end."""
        self._rest += text
        at = 0
        try:
            while not self.is_over and (step := self._step(at)):
                at += step
        except _NoJsonError:
            self.has_failed = True
        self._rest = self._rest[at:]
        if not self.is_over:
            return ""
        behind, self._rest = self._rest, ""
        return behind

    def _step(self, at: int) -> int:
        """Take the next part; return its length, 0 where it may not be whole yet."""
        if self.has_failed or at >= len(self._rest):
            return 0
        if self._is_text:
            return self._inside_text(at)
        blank = _match(_BLANK, self._rest, at)
        if blank:
            return blank
        character = self._rest[at]
        if not self._open:
            if character != "{":
                raise _NoJsonError
            return self._begin(is_object=True)
        here = self._open[-1]
        if character in "}]":
            return self._end(character, here)
        if here.expects == "behind":
            if character != ",":
                raise _NoJsonError
            self._tell(", ")
            here.expects = "key" if here.is_object else "value"
            return 1
        if here.expects == "colon":
            if character != ":":
                raise _NoJsonError
            self._tell(": ")
            here.expects = "value"
            return 1
        if here.is_object and here.expects in ("first", "key"):
            if character != '"':
                raise _NoJsonError
            self._key, self._is_text = [], True
            return 1
        return self._value(at, character, here)

    def _value(self, at: int, character: str, here: _Open) -> int:
        if character == '"':
            here.expects = "behind"
            self._is_text = True
            self._tell('"')
            return 1
        if character in "{[":
            here.expects = "behind"
            return self._begin(is_object=character == "{")
        length = _match(_WORD, self._rest, at)
        if not length or length > _MAX_NUMBER:
            raise _NoJsonError
        if at + length == len(self._rest):
            return 0
        here.expects = "behind"
        self._tell(_number_or_literal(self._rest[at : at + length]))
        return length

    def _begin(self, *, is_object: bool) -> int:
        self._open.append(_Open(is_object))
        self._tell("{" if is_object else "[")
        return 1

    def _end(self, character: str, here: _Open) -> int:
        if here.expects not in ("first", "behind") or here.is_object != (character == "}"):
            raise _NoJsonError
        self._open.pop()
        if self._open:
            self._tell(character)
        else:
            self.is_over = True
        return 1

    def _inside_text(self, at: int) -> int:
        length = _match(_PLAIN, self._rest, at)
        if length:
            self._spell(self._rest[at : at + length])
            return length
        if self._rest[at] == '"':
            self._end_text()
            return 1
        if self._rest[at] != "\\":
            raise _NoJsonError  # a control character, which JSON wants escaped
        return self._escape(self._rest[at : at + 12])

    def _escape(self, ahead: str) -> int:
        """Take an escape, which is as long as two of half a character at most."""
        if len(ahead) < 2:
            return 0
        if ahead[1] != "u":
            if ahead[1] not in _ESCAPES:
                raise _NoJsonError
            self._spell(_ESCAPES[ahead[1]])
            return 2
        if len(ahead) < 6:
            return 0
        code = _code(ahead[2:6])
        if not 0xD800 <= code < 0xE000:
            self._spell(chr(code))
            return 6
        if code >= 0xDC00 or not "\\u".startswith(ahead[6:8]):
            raise _NoJsonError
        if len(ahead) < 12:
            return 0
        low = _code(ahead[8:12])
        if not 0xDC00 <= low < 0xE000:
            raise _NoJsonError
        self._spell(chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)))
        return 12

    def _spell(self, text: str) -> None:
        if self._key is not None:
            self._key.append(text)
        else:
            self._tell(json.dumps(text, ensure_ascii=False)[1:-1])

    def _end_text(self) -> None:
        self._is_text = False
        if self._key is None:
            self._tell('"')
            return
        key, here = "".join(self._key), self._open[-1]
        if key in here.keys:
            raise _NoJsonError  # the later value takes the place of the earlier one, which was told
        here.keys.add(key)
        here.expects, self._key = "colon", None
        self._tell(json.dumps(key, ensure_ascii=False))

    def _tell(self, text: str) -> None:
        self.pieces.append(text)


def _match(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return 0 if found is None else found.end() - at


def _code(digits: str) -> int:
    if not _HEXADECIMAL.fullmatch(digits):
        raise _NoJsonError
    return int(digits, 16)


def _number_or_literal(word: str) -> str:
    if word in _LITERALS:
        return word
    try:
        value: Any = json.loads(word)
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise _NoJsonError from None
