"""I/O: one request's answer while it grows: fed by the engine, read by the HTTP handler, both on the event loop."""

import asyncio
import time
from dataclasses import dataclass, field

from runtime.worker.batch import Delta, Failure, Finish
from runtime.worker.errors import GenerationError


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that arrived since the last look."""

    text: str
    finish: Finish | None


@dataclass(slots=True)
class Answer:
    """What one request has been given so far.

    Text waits here for its reader. A slow reader holds no place in the batch and costs at most the text of
    `max_tokens` tokens: pieces that wait are joined, and generation does not wait for anybody.
    """

    id: int
    prompt_tokens: int
    began_at: float = field(default_factory=time.monotonic)
    generated_tokens: int = 0
    is_over: bool = False
    _texts: list[str] = field(default_factory=list)
    _finish: Finish | None = None
    _failure: str | None = None
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def feed(self, event: Delta | Failure) -> None:
        """Add what a round gave."""
        match event:
            case Delta():
                self._texts.append(event.text)
                self.generated_tokens += 1
                self._finish = event.finish
                self.is_over = event.finish is not None
            case Failure():
                self._failure = event.message
                self.is_over = True
        self._arrived.set()

    async def read(self) -> Piece:
        """Wait for more text, or for the end.

        Raises GenerationError, once the text before the failure was read.
        """
        await self._arrived.wait()
        if self._failure is None:
            self._arrived.clear()
        elif not self._texts:
            raise GenerationError(self._failure)
        text = "".join(self._texts)
        self._texts.clear()
        return Piece(text, self._finish)
