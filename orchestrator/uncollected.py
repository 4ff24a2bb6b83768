"""I/O: work that makes many objects and no cycles, without the collector of cycles looking at them again and again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector:
    """Python's collector of cycles, off while anybody wants it off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._was_enabled = False

    def hold(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._was_enabled:
                gc.enable()


_COLLECTOR = _Collector()


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for reference cycles while the context lasts; what nobody refers to is freed as ever.

    A plan is hundreds of thousands of small objects that live until it is printed, and every pass of the collector
    visits them all and finds nothing: a quarter to a third of the time that planning for 1,000 nodes took. The
    collector belongs to the process: the first of overlapping contexts turns it off, and the last that ends turns it
    on again where it was on.
    """
    _COLLECTOR.hold()
    try:
        yield
    finally:
        _COLLECTOR.release()
