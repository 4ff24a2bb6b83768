"""Pure: tokens become text: whole characters only, and never a piece of a stop string."""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Turns one request's tokens into text as they come."""

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""

    def flush(self) -> str:
        """Return what was held back, at the end; an unfinished character becomes U+FFFD."""


class ByteDetokenizer:
    """For tokenizers whose tokens are bytes: exact, and constant work a token."""

    def __init__(self, table: Sequence[bytes]) -> None:
        """`table` maps token ids to bytes; ids beyond its end (padding of the vocabulary) have no text."""
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        return self._decoder.decode(self._table[token]) if token < len(self._table) else ""

    def flush(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


_MAX_HELD_TOKENS = 8
"""A character has at most four bytes, so tokens held back longer than this will never become one."""


class WindowDetokenizer:
    """For every other tokenizer: decodes the last few tokens with and without the new ones.

    Decoding some tokens alone may differ from decoding them after others (joining spaces), so a text is only the
    difference of two decodings that begin at the same token.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """`decode` turns token ids into text."""
        self._decode = decode
        self._context: list[int] = []
        self._fresh: list[int] = []

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        self._fresh.append(token)
        text = self._difference()
        if not text or (text.endswith("\ufffd") and len(self._fresh) < _MAX_HELD_TOKENS):
            return ""
        self._context, self._fresh = self._fresh, []
        return text

    def flush(self) -> str:
        """Return what was held back."""
        text = self._difference() if self._fresh else ""
        self._fresh = []
        return text

    def _difference(self) -> str:
        return self._decode(self._context + self._fresh)[len(self._decode(self._context)) :]


def byte_level_table(tokens: Sequence[str], literal: frozenset[int]) -> list[bytes]:
    """Return the bytes of every token of a byte-level BPE vocabulary.

    Such a vocabulary spells each byte as one printable character (GPT-2's `bytes_to_unicode`). `literal` holds the ids
    of added tokens, which are spelt as themselves.
    """
    byte_of = _byte_alphabet()
    table = []
    for index, token in enumerate(tokens):
        is_spelt = index not in literal and all(character in byte_of for character in token)
        table.append(bytes(byte_of[character] for character in token) if is_spelt else token.encode())
    return table


def piece_bytes(piece: str, *, is_literal: bool) -> bytes:
    """Return the bytes of a token of a SentencePiece vocabulary: U+2581 is a space, `<0x0A>` a byte.

    `is_literal` marks added tokens, which are spelt as themselves.
    """
    if is_literal:
        return piece.encode()
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Map characters to bytes: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


class StopMatcher:
    """Finds the first stop string that completes in a text that comes in pieces.

    "First" is by its end, and of several that end together the longest, so the outcome does not depend on where the
    pieces are cut. Text is held back while it may still become a stop string. One Knuth-Morris-Pratt automaton a stop
    string: the work is linear in the text, whatever the stop strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are nonempty; none of them means that all text passes."""
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that completed."""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; return the text to emit and whether a stop string completed. After that, push no more."""
        if not self._stops:
            return text, False
        for index, character in enumerate(text):
            length = self._advance(character)
            if length:
                seen = self._held + text[: index + 1]
                self._held, self.found = "", seen[len(seen) - length :]
                return seen[: len(seen) - length], True
        seen = self._held + text
        certain = len(seen) - max(self._matched)
        self._held = seen[certain:]
        return seen[:certain], False

    def flush(self) -> str:
        """Return the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Move every automaton by one character; return the length of the longest stop that completed, or 0."""
        complete = 0
        for which, stop in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != character:
                matched = self._borders[which][matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[which] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _borders(stop: str) -> list[int]:
    """For every prefix, the length of the longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
