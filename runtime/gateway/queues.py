"""I/O: requests that wait until an endpoint has a place for them: a bounded line for every name that clients ask for.

A place that becomes free is leased for whoever waits longest, at once and not by that one itself: nobody who comes
later can take it first, and nobody who leaves takes it along.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from itertools import count, islice

from runtime.gateway.routing.lease import Lease

MOST_BYTES = 128 * 1024 * 1024
"""Bytes of the bodies in one line; the first may be larger."""
LOOKED_AT = 256
"""Requests of a line that are looked at when a place is free, behind some that can use only other places."""
SHORTEST_S = 0.01
"""Between two looks that no event causes."""

Take = Callable[[], Lease | float | None]
"""Takes a place for a request where there is one. Else it returns in how many seconds something may change by itself,
infinity where only the end of another request helps, or None where waiting is of no use any more."""


class Waiter:
    """One request in line."""

    __slots__ = ("future", "is_plain", "name", "number", "size", "take")

    def __init__(self, name: str, number: int, size: int, take: Take, *, is_plain: bool) -> None:
        self.name = name
        self.number = number
        self.size = size
        self.take = take
        self.is_plain = is_plain
        self.future: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        """The place, or None once waiting is of no use."""


class Queues:
    """The lines. Used on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, dict[int, Waiter]] = {}
        """By name, each in the order of arrival. Empty ones are dropped."""
        self._bytes: dict[str, int] = {}
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._is_passing = False

    @property
    def depths(self) -> Mapping[str, int]:
        """Return how many requests wait, by the name that they ask for."""
        return {name: len(line) for name, line in self._lines.items()}

    def length(self, name: str) -> int:
        """Return how many requests for a name wait."""
        line = self._lines.get(name)
        return 0 if line is None else len(line)

    def join(
        self, name: str, size: int, most: int, take: Take, *, is_plain: bool, is_again: bool = False
    ) -> Waiter | None:
        """Get in line with a body of `size` bytes; None where `most` wait already.

        The first look is taken here. `is_plain` says that any endpoint of the name will do: where one such request
        finds no place, those behind it need not look. Who was held before (`is_again`) is not refused. Everybody who
        joined leaves.
        """
        line = self._lines.get(name, {})
        held = self._bytes.get(name, 0)
        if not is_again and (len(line) >= most or (held and held + size > MOST_BYTES)):
            return None
        waiter = Waiter(name, next(self._numbers), size, take, is_plain=is_plain)
        self._lines.setdefault(name, line)[waiter.number] = waiter
        self._bytes[name] = held + size
        if len(line) == 1 or not is_plain:
            self._look(waiter)
        return waiter

    def leave(self, waiter: Waiter, *, with_lease: bool = False) -> None:
        """Leave the line; a place that was leased meanwhile goes to the next one, unless it is made use of."""
        self._drop(waiter)
        if waiter.future.done() and not with_lease:
            lease = None if waiter.future.exception() else waiter.future.result()
            if lease is not None:
                lease.release()
        elif not waiter.future.done():
            waiter.future.cancel()
            # Who stands behind one that nobody could serve may have better luck.
            self.changed()

    def changed(self) -> None:
        """Let those who wait look again: a request has ended, or there is another table."""
        if not self._lines or self._is_passing:
            return
        self._is_passing = True
        try:
            for line in sorted(self._lines.values(), key=lambda line: next(iter(line))):
                self._pass(line)
        finally:
            self._is_passing = False

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self, line: dict[int, Waiter]) -> None:
        for waiter in tuple(islice(line.values(), LOOKED_AT)):
            if not self._look(waiter) and waiter.is_plain:
                return

    def _look(self, waiter: Waiter) -> bool:
        """Tell whether a request need not wait any longer."""
        try:
            found = waiter.take()
        except Exception as error:  # noqa: BLE001 - it is told to whom it concerns, not to who has made room
            self._drop(waiter)
            waiter.future.set_exception(error)
            return True
        if isinstance(found, float):
            self._look_again_in(found)
            return False
        self._drop(waiter)
        waiter.future.set_result(found)
        return True

    def _drop(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.name)
        if line is None or line.pop(waiter.number, None) is None:
            return
        self._bytes[waiter.name] -= waiter.size
        if not line:
            del self._lines[waiter.name], self._bytes[waiter.name]

    def _look_again_in(self, seconds: float) -> None:
        at = self._loop.time() + max(seconds, SHORTEST_S)
        if at == math.inf or at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(at, self._on_time), at

    def _on_time(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.changed()
