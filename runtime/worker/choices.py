"""Pure: pieces of a request's choices become OpenAI's answer, whole or as a stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.worker import logprobs
from runtime.worker.answer import Piece
from runtime.worker.batch import TokenReport
from runtime.worker.openai import COMMENT, Envelope, EventStream, Usage
from runtime.worker.tools.shapes import delta_of, message_of
from runtime.worker.tools.stream import CallReader, Part, Text
from runtime.worker.tools.thoughts import ThoughtReader

SILENT_PIECES = 8
"""What is held back must not look like a stream that has died: after so many pieces of it a comment is sent."""


@dataclass(slots=True)
class Whole:
    """Gathers an answer that does not stream."""

    envelope: Envelope
    choices: int
    has_logprobs: bool
    new_reader: Callable[[], CallReader] | None = None
    """Makes what finds the tool calls in one choice."""
    new_thoughts: Callable[[], ThoughtReader] | None = None
    """Makes what tells the thoughts of one choice apart; none where the model does not think."""
    _texts: list[list[str]] = field(init=False)
    _tokens: list[list[TokenReport]] = field(init=False)
    _finishes: list[str | None] = field(init=False)
    _complete: set[int] = field(default_factory=set)
    """Choices that the model itself ended."""
    _stops: dict[int, str] = field(default_factory=dict)
    """The stop strings that ended the others, by choice."""

    def __post_init__(self) -> None:
        self._texts = [[] for _ in range(self.choices)]
        self._tokens = [[] for _ in range(self.choices)]
        self._finishes = [None] * self.choices

    @property
    def is_over(self) -> bool:
        """Tell whether every choice has ended."""
        return None not in self._finishes

    def add(self, pieces: Sequence[Piece]) -> None:
        """Take what arrived."""
        for piece in pieces:
            self._texts[piece.choice].append(piece.text)
            self._tokens[piece.choice].extend(piece.tokens)
            self._finishes[piece.choice] = piece.finish
            if piece.is_complete:
                self._complete.add(piece.choice)
            if piece.stop is not None:
                self._stops[piece.choice] = piece.stop

    def body(self, usage: Usage, token_ids: Sequence[list[int]] | None = None) -> dict[str, Any]:
        """Return the answer, with the ids of each choice's tokens where they are told."""
        choices = [self._choice(index) for index in range(self.choices)]
        if token_ids is not None:
            for choice, ids in zip(choices, token_ids, strict=True):
                choice["token_ids"] = ids  # as vLLM tells them
        return self.envelope.whole(choices, usage)

    def _choice(self, index: int) -> dict[str, Any]:
        told = logprobs_of(self.envelope, self._tokens[index]) if self.has_logprobs else None
        text, finish = "".join(self._texts[index]), self._finishes[index]
        thoughts, text = _apart(None if self.new_thoughts is None else self.new_thoughts(), text, is_last=True)
        choice = self.envelope.whole_choice(index, text, finish, told) | stopped_by(self._stops.get(index))
        if self.new_reader is not None:
            reader = self.new_reader()
            parts = [*reader.push(text), *reader.finish(is_complete=index in self._complete)]
            choice |= {"message": message_of(parts), "finish_reason": finish_of(reader, finish)}
        return choice if not thoughts else choice | {"message": choice["message"] | {"reasoning_content": thoughts}}


@dataclass(slots=True)
class Stream:
    """Encodes an answer that streams. A choice ends with an event of its own, the answer with its last choice."""

    envelope: Envelope
    choices: int
    has_logprobs: bool
    include_usage: bool
    new_reader: Callable[[], CallReader] | None = None
    """Makes what finds the tool calls in one choice."""
    new_thoughts: Callable[[], ThoughtReader] | None = None
    """Makes what tells the thoughts of one choice apart; none where the model does not think."""
    _readers: dict[int, CallReader] = field(init=False)
    """Keyed by the choice's number; empty where there are no calls to find."""
    _thoughts: dict[int, ThoughtReader] = field(init=False)
    """Keyed by the choice's number; empty where there are none to find."""
    _events: EventStream = field(init=False)
    _open: set[int] = field(init=False)
    _silent: int = 0
    """Pieces that gave no event: what may be a call, or a listed argument of one, is told when it is certain."""

    def __post_init__(self) -> None:
        self._events = EventStream(self.envelope, include_usage=self.include_usage)
        self._open = set(range(self.choices))
        make = self.new_reader
        self._readers = {} if make is None else {index: make() for index in range(self.choices)}
        think = self.new_thoughts
        self._thoughts = {} if think is None else {index: think() for index in range(self.choices)}

    @property
    def is_over(self) -> bool:
        """Tell whether every choice has ended."""
        return not self._open

    def first(self) -> bytes:
        """Return the events that open a chat's choices."""
        return b"".join(self._events.first(index) for index in range(self.choices))

    def add(self, pieces: Sequence[Piece]) -> bytes:
        """Return the events of what arrived."""
        return b"".join(self._piece(piece) for piece in pieces)

    def end(self, usage: Usage) -> bytes:
        """Return the last events."""
        return self._events.end(usage if self.include_usage else None)

    def _piece(self, piece: Piece) -> bytes:
        reader = self._readers.get(piece.choice)
        thoughts, text = _apart(self._thoughts.get(piece.choice), piece.text, is_last=piece.finish is not None)
        text, calls = (text, []) if reader is None else _read(reader, piece, text)
        events = self._events.delta(piece.choice, {"reasoning_content": thoughts}) if thoughts else b""
        if self.has_logprobs and piece.tokens:
            events += self._events.told(piece.choice, text, logprobs_of(self.envelope, piece.tokens))
        elif text:
            events += self._events.text(text, piece.choice)
        events += b"".join(self._events.delta(piece.choice, delta_of(call)) for call in calls)
        if not events:
            self._silent += 1
            events = COMMENT if self._silent % SILENT_PIECES == 0 else b""
        if piece.finish is not None:
            self._open.discard(piece.choice)
            finish = piece.finish if reader is None else finish_of(reader, piece.finish)
            events += self._events.finish(piece.choice, str(finish), **stopped_by(piece.stop))
        return events


def _apart(reader: ThoughtReader | None, text: str, *, is_last: bool) -> tuple[str, str]:
    """Return the thoughts and the rest of the answer that a piece makes certain."""
    if reader is None:
        return "", text
    thoughts, said = reader.push(text)
    if is_last:
        more, rest = reader.finish()
        thoughts, said = thoughts + more, said + rest
    return thoughts, said


def _read(reader: CallReader, piece: Piece, text: str) -> tuple[str, list[Part]]:
    """Return the content and the calls that a piece makes certain; `text` is its text without the thoughts.

    Content between two calls of one piece moves before them: OpenAI's messages do not tell where it stood.
    """
    parts = reader.push(text)
    if piece.finish is not None:
        parts += reader.finish(is_complete=piece.is_complete)
    text = "".join(part.text for part in parts if isinstance(part, Text))
    return text, [part for part in parts if not isinstance(part, Text)]


def finish_of(reader: CallReader, finish: str | None) -> str | None:
    """Return the finish of an answer that was read: calls are one, unless the answer was cut off."""
    return "tool_calls" if reader.calls and not reader.is_cut and finish == "stop" else finish


def stopped_by(stop: str | None) -> dict[str, str]:
    """Return what a choice says of the stop string that ended it, as vLLM does; OpenAI's API says nothing."""
    return {} if stop is None else {"stop_reason": stop}


def logprobs_of(envelope: Envelope, tokens: Sequence[TokenReport]) -> dict[str, Any]:
    """Build the `logprobs` of a choice."""
    return logprobs.chat(tokens) if envelope.kind == "chat" else logprobs.completion(tokens)
