"""I/O: past requests and errors, which outlive the process. A request that ends only puts what is known into a queue.

A thread of its own writes what is in it once a second, and reads what somebody asks for.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from runtime.gateway.observe.history_file import HistoryFile, Wanted
from runtime.gateway.observe.past import errors_of, request_of
from runtime.gateway.observe.receipts import Entry
from schemas.history import PastErrors, PastRequests

log = logging.getLogger(__name__)

WRITE_S = 1.0
"""Between two writings."""
MOST_WAITING = 20_000
"""Requests that wait to be written; beyond them the oldest are forgotten. So many end in a second at most."""

T = TypeVar("T")


class History:
    """Used on one event loop, but for what its thread does."""

    def __init__(self, path: Path | None) -> None:
        """`path` is that of the file; None keeps everything in memory. The file is opened when it is needed."""
        self._path = path
        self._waiting: deque[Entry] = deque(maxlen=MOST_WAITING)
        self.add: Callable[[Entry], None] = self._waiting.append
        """Keeps a request that has just ended."""
        self._file: HistoryFile | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._timer: asyncio.TimerHandle | None = None
        self._is_failing = False

    def start(self) -> None:
        """Begin to write, once a second."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_S, self._tick)

    async def requests(self, wanted: Wanted) -> PastRequests:
        """Return past requests, those of this moment included; raises `sqlite3.Error`."""
        return await self._ask(lambda file: PastRequests(requests=file.requests(wanted)))

    async def errors(self, wanted: Wanted) -> PastErrors:
        """Return past errors, those of this moment included; raises `sqlite3.Error`."""
        return await self._ask(lambda file: PastErrors(errors=file.errors(wanted), groups=file.groups(wanted)))

    def close(self) -> None:
        """Write what is left, and end the thread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._file is not None or (self._path is not None and self._waiting):
            self._thread.submit(self._end)
        self._thread.shutdown()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WRITE_S, self._tick)
        if self._waiting:
            self._thread.submit(self._write)

    async def _ask(self, read: Callable[[HistoryFile], T]) -> T:
        def look() -> T:
            self._write()
            return read(self._opened())

        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    # -- on the thread

    def _opened(self) -> HistoryFile:
        if self._file is None:
            self._file = HistoryFile(self._path)
        return self._file

    def _write(self) -> None:
        # The loop may append meanwhile; what is counted now is there.
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:
            return
        try:
            self._opened().write(
                [request_of(one) for one in batch], [error for one in batch for error in errors_of(one)]
            )
        except (sqlite3.Error, OSError, ValueError) as error:
            if not self._is_failing:
                log.warning("%d requests are missing in the history: %s", len(batch), error)
            self._is_failing = True
        else:
            self._is_failing = False

    def _end(self) -> None:
        self._write()
        if self._file is not None:
            self._file.close()
            self._file = None
