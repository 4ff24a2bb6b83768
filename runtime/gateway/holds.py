"""I/O: requests that wait for another routing table, because all that could answer them is being replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

MOST_HELD = 256
"""Requests of one role, or of another name that clients ask for, that are held at once."""
MOST_HELD_BYTES = 256 * 1024 * 1024
"""Bytes of all bodies that are held at once."""


class Holds:
    """Counts the requests that are held, and wakes them. Used on one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._bytes = 0
        self._changed = asyncio.Event()

    @property
    def held(self) -> Mapping[str, int]:
        """How many requests are held, by the name that they ask for."""
        return self._held

    @contextmanager
    def place(self, name: str, size: int, *, is_again: bool = False) -> Iterator[bool]:
        """Take a place for a body of `size` bytes and leave it at the end; gives False where none is left.

        Who had one before (`is_again`) gets one in any case: it is not refused after it has waited.
        """
        is_full = self._held[name] >= MOST_HELD or self._bytes + size > MOST_HELD_BYTES
        if is_full and not is_again:
            yield False
            return
        self._held[name] += 1
        self._bytes += size
        try:
            yield True
        finally:
            self._bytes -= size
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    def mark(self) -> asyncio.Event:
        """Return what tells of the next table from now on."""
        return self._changed

    async def wait(self, mark: asyncio.Event, timeout_s: float) -> bool:
        """Wait for the table that `mark` tells of; return False when the time was over first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await mark.wait()
        # Both may come in the same turn of the loop.
        return mark.is_set()

    def wake(self) -> None:
        """Let every held request look at the new table."""
        # Who waits from now on waits for the next one.
        self._changed.set()
        self._changed = asyncio.Event()
