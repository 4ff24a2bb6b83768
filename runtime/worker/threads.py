"""I/O: threads for models, and what all of them tell of a load.

They are used again: MLX gives every thread that computes streams of its own, which outlive it. Measured with mlx
0.32.4 on Linux: each new thread leaves two more behind for good, and the C library another arena. A worker that loads
its model again and again must not grow by that.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from schemas.messages import Phase

STOP_S = 5.0
"""A round or batch that takes longer than this does not delay the end of the process."""

_idle: list[_Worker] = []
"""Threads that wait for the next function; `list.append` and `list.pop` are atomic."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The thread entered a phase, or got further in it."""

    phase: Phase
    share: float | None = None


class ModelThread:
    """One run of a function on a thread of its own meanwhile; used like a `threading.Thread` that is a daemon."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._has_begun = False
        self._is_over = threading.Event()

    def start(self) -> None:
        """Run the function."""
        try:
            worker = _idle.pop()
        except IndexError:
            worker = _Worker()
        self._has_begun = True
        worker.work.put(self)

    def is_alive(self) -> bool:
        """Tell whether the function was started and has not returned."""
        return self._has_begun and not self._is_over.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the function's end."""
        self._is_over.wait(timeout)

    def end(self) -> None:
        """Tell who waits that the function has returned."""
        self._is_over.set()

    def run(self) -> None:
        """Call the function; what it refers to is let go of before its end is told."""
        target = self._target
        del self._target
        try:
            target()
        finally:
            del target


class _Worker:
    def __init__(self) -> None:
        self.work: queue.SimpleQueue[ModelThread] = queue.SimpleQueue()
        # A daemon: a model call that never returns must not keep the process from ending.
        threading.Thread(target=self._main, name="model", daemon=True).start()

    def _main(self) -> None:
        while True:
            job = self.work.get()
            try:
                job.run()
                _idle.append(self)
            finally:
                job.end()
            del job
