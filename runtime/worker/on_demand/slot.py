"""I/O: the engine of the moment: a fresh one for every load, of which nothing stays behind when it is dropped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic

from runtime.worker.on_demand import memory, words
from runtime.worker.on_demand.hosting import E, Make

LOAD_POLL_S = 0.02
END_POLL_S = 0.1


class LoadFailedError(Exception):
    """The engine ended before it gave an answer."""


class LoadStuckError(Exception):
    """The engine neither ended nor gave an answer for far longer than any load takes."""


class Slot(Generic[E]):
    """Holds one engine at a time, started or not; the counters of all of them are one."""

    def __init__(self, make: Make[E], on_end: Callable[[], None]) -> None:
        """`on_end` is called when the thread of the engine that is held ended by itself."""
        self.has_started = False
        """The engine's `start` was called."""
        self.has_ended = False
        """The engine's thread has ended by itself."""
        self._make = make
        self._on_end = on_end
        self._engines = 0
        """Made so far: what an earlier one still says is not about this one."""
        self.engine: E = self._fresh()
        self.meter = self.engine.gate.meter

    @property
    def is_alive(self) -> bool:
        """Tell whether the engine was started and its thread lives."""
        return self.has_started and self.engine.is_alive

    def start(self) -> None:
        """Begin to load the model."""
        self.has_started = True
        self.engine.start()

    async def until_ready(self, limit_s: float) -> None:
        """Wait for the load's end; raises LoadFailedError, and LoadStuckError after `limit_s`."""
        due = time.monotonic() + limit_s
        while self.engine.gate.phase != "ready":
            if self.has_ended:
                raise LoadFailedError(self.engine.failure or "the engine ended without a word.")
            if time.monotonic() >= due:
                raise LoadStuckError(words.stuck(limit_s))
            await asyncio.sleep(LOAD_POLL_S)

    async def empty(self, limit_s: float, is_hurried: Callable[[], bool]) -> bool:
        """End the engine and give its memory back; False where its thread still lives after `limit_s`, or in a hurry.

        A thread ends after the batch that it computes, which outlives the clients that asked for it.
        """
        if self.has_started:
            due = time.monotonic() + limit_s
            await self.engine.drain()
            while self.engine.is_alive:
                if is_hurried() or time.monotonic() >= due:
                    return False
                await asyncio.sleep(END_POLL_S)
        self.engine = self._fresh()
        self.engine.gate.meter = self.meter
        self.has_started = False
        await asyncio.to_thread(memory.give_back)
        return True

    def _fresh(self) -> E:
        self.has_ended = False
        self._engines += 1
        number = self._engines
        return self._make(lambda: self._note_end(number))

    def _note_end(self, number: int) -> None:
        if number == self._engines:
            self.has_ended = True
            self._on_end()
