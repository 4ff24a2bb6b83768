"""I/O: one request's answer while it grows: fed by the engine, read by the HTTP handler, both on the event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.worker.batch import Delta, Entered, Failure, Finish, TokenReport
from runtime.worker.errors import GenerationError
from runtime.worker.tools.stream import CallReader
from runtime.worker.tools.thoughts import ThoughtReader


@dataclass(frozen=True, slots=True)
class Piece:
    """What arrived for one choice since the last look."""

    choice: int
    """Its number, from 0."""
    text: str
    finish: Finish | None
    tokens: tuple[TokenReport, ...] = ()
    """Empty where the request asks for no log probabilities."""
    stop: str | None = None
    """The stop string that ended it, wherever the model was."""

    @property
    def is_complete(self) -> bool:
        """Tell whether the model itself ended the answer here."""
        return self.finish == "stop" and self.stop is None


@dataclass(slots=True)
class _Waiting:
    """What one choice has been given and nobody has read."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenReport] = field(default_factory=list)
    finish: Finish | None = None
    is_fresh: bool = False
    stop: str | None = None
    ids: list[int] = field(default_factory=list)
    """Of all its tokens, an end token included; they stay."""

    def take(self, choice: int) -> Piece:
        piece = Piece(choice, "".join(self.texts), self.finish, tuple(self.tokens), self.stop)
        self.texts.clear()
        self.tokens.clear()
        self.is_fresh = False
        return piece


@dataclass(slots=True)
class Answer:
    """What one request has been given so far, in all its choices.

    Text waits here for its reader. A slow reader holds no place in the batch and costs at most the text of
    `max_tokens` tokens: pieces that wait are joined, and generation does not wait for anybody.
    """

    ids: Sequence[int]
    """Of the jobs, one a choice."""
    prompt_tokens: int
    began_at: float = field(default_factory=time.monotonic)
    generated_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, taken from the prompt cache."""
    new_reader: Callable[[], CallReader] | None = None
    """Makes what finds the tool calls in one choice; none where there are none to find."""
    new_thoughts: Callable[[], ThoughtReader] | None = None
    """Makes what tells the thoughts of one choice apart; none where the model does not think."""
    open: set[int] = field(init=False)
    """Ids of the jobs that have not ended."""
    _waiting: dict[int, _Waiting] = field(init=False)
    _failure: str | None = None
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open = set(self.ids)
        self._waiting = {job_id: _Waiting() for job_id in self.ids}

    @property
    def is_over(self) -> bool:
        """Tell whether every choice has ended; one that failed ends all."""
        return not self.open

    def token_ids(self) -> list[list[int]]:
        """Return the ids of the tokens so far, an end token included, by choice."""
        return [list(waiting.ids) for waiting in self._waiting.values()]

    def feed(self, event: Delta | Entered | Failure) -> None:
        """Add what a round gave."""
        match event:
            case Delta():
                waiting = self._waiting[event.id]
                waiting.texts.append(event.text)
                if event.token is not None:
                    waiting.tokens.append(event.token)
                if event.token_id is not None:
                    waiting.ids.append(event.token_id)
                waiting.finish = event.finish
                waiting.stop = event.stop
                waiting.is_fresh = True
                self.generated_tokens += 1
                if event.finish is not None:
                    self.open.discard(event.id)
            case Entered():
                # The others take the first one's prompt, whatever it was taken from.
                if event.id == self.ids[0]:
                    self.cached_tokens = event.known
                return
            case Failure():
                self._failure = event.message
                self.open.clear()
        self._arrived.set()

    async def read(self) -> list[Piece]:
        """Wait for more; return a piece for every choice that has got something, in the order of the choices.

        Raises GenerationError, once the text before the failure was read.
        """
        await self._arrived.wait()
        if self._failure is None:
            self._arrived.clear()
        elif not any(waiting.is_fresh for waiting in self._waiting.values()):
            raise GenerationError(self._failure)
        fresh = enumerate(self._waiting.values())
        return [waiting.take(choice) for choice, waiting in fresh if waiting.is_fresh]
