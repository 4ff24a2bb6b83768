"""Pure: texts become rows of tokens that fit a model, cut or refused where they are too long.

The tokenizer is one of the `tokenizers` library that neither cuts nor pads by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.errors import RequestError

_HEAD_CHARACTERS = 32
"""Characters for each token of room that are read of a long text before all of it is."""
_HEAD_MARGIN = 16
"""Tokens at the end of such a head that the rest of the text could still have changed."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is computed as one sequence."""

    tokens: Sequence[int]
    second: int = 0
    """Where a pair's second text begins; 0 for a row that has only one."""
    marks: tuple[int, ...] = ()
    """The places whose states are wanted; empty where the model's own pooling decides."""
    cut: tuple[bool, ...] = (False,)
    """For each text that the row answers for, whether it was longer than the model can read."""


class Texts:
    """Reads texts with one model's tokenizer."""

    def __init__(self, tokenizer: Any, max_length: int, vocabulary: int, *, is_lowercased: bool = False) -> None:
        """`max_length` is in tokens, special ones included; ids of given tokens are below `vocabulary`.

        Raises ModelFilesError where no text fits.
        """
        if max_length <= tokenizer.num_special_tokens_to_add(True):
            raise ModelFilesError(f"{max_length} tokens leave no room for a text: raise --max-context")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._vocabulary = vocabulary
        self._is_lowercased = is_lowercased

    def read(self, texts: Sequence[str], room: int) -> list[Any]:
        """Return encodings without special tokens; those of texts that need more than `room` may lack their ends."""
        if self._is_lowercased:
            texts = [text.lower() for text in texts]
        heads = [text[: room * _HEAD_CHARACTERS] for text in texts]
        encodings: list[Any] = self.tokenizer.encode_batch(heads, add_special_tokens=False)
        for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) < len(text) and len(encodings[index]) <= room + _HEAD_MARGIN:
                encodings[index] = self.tokenizer.encode(text, add_special_tokens=False)
        return encodings

    def rows(self, texts: Sequence[str], names: Sequence[str], *, truncate: bool) -> list[Row]:
        """Return one row for each text, with the model's special tokens.

        `names` are the texts' fields in the request. Raises RequestError.
        """
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(False)
        rows = []
        for encoding, name in zip(self.read(texts, room), names, strict=True):
            is_cut = len(encoding) > room
            if is_cut and not truncate:
                raise self.too_long(name)
            if is_cut:
                encoding.truncate(room)
            tokens = self.tokenizer.post_process(encoding, None, True).ids
            if not tokens:
                raise RequestError(f"{name} has no tokens.", param=name)
            rows.append(Row(tokens, cut=(is_cut,)))
        return rows

    def pairs(self, first: str, seconds: Sequence[str], names: Sequence[str], *, truncate: bool) -> list[Row]:
        """Return one row for each pair of `first` and one of `seconds`; `names` are the fields of the latter.

        Of a pair that is too long the longer text is cut, as cross-encoders are trained. Raises RequestError.
        """
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(True)
        (head,) = self.read([first], room)
        rows = []
        for encoding, name in zip(self.read(seconds, room), names, strict=True):
            first_room, second_room = _shares(len(head), len(encoding), room)
            is_cut = first_room < len(head) or second_room < len(encoding)
            if is_cut and not truncate:
                raise self.too_long("query" if len(head) >= room else name)
            pair = self.tokenizer.post_process(_cut(head, first_room), _cut(encoding, second_room), True)
            second = next((place for place, kind in enumerate(pair.type_ids) if kind == 1), 0)
            rows.append(Row(pair.ids, second, cut=(is_cut,)))
        return rows

    def given(self, tokens: Sequence[int], name: str, *, truncate: bool) -> Row:
        """Return a row of tokens that the client has made, exactly as they are; raises RequestError."""
        if max(tokens) >= self._vocabulary:
            raise RequestError(f"{name} has a token id that is not below {self._vocabulary}.", param=name)
        is_cut = len(tokens) > self.max_length
        if is_cut and not truncate:
            raise self.too_long(name)
        return Row(tokens[: self.max_length], cut=(is_cut,))

    def too_long(self, name: str) -> RequestError:
        """Build the refusal of a text that the model cannot read whole."""
        message = f"{name} is longer than the {self.max_length} tokens that this model reads; `truncate: true` cuts it."
        return RequestError(message, param=name, code="context_length_exceeded")


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how much of each text fits when tokens are taken from the longer one; an odd one stays with it."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)


def _cut(encoding: Any, room: int) -> Any:
    # `truncate` works in place, and the first text of a pair is used again.
    if len(encoding) <= room:
        return encoding
    copy = type(encoding).merge([encoding])
    copy.truncate(room)
    return copy
