"""I/O: the gate of an engine: the phase that it is in, who may enter it, and how long its end waits for who is inside.

Everything here belongs to the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from runtime.worker import refusals
from runtime.worker.errors import UnavailableError
from runtime.worker.settings import Settings
from runtime.worker.status import Meter
from runtime.worker.threads import Progress
from schemas.messages import Phase, WorkerReadiness

logger = logging.getLogger(__name__)

BROKEN = "The model stopped working; the worker restarts."
STOPPED = "The worker was stopped before the answer was complete."

M = TypeVar("M")


class Gate:
    """Owns an engine's phase and the counters of its requests."""

    def __init__(self, settings: Settings, taken: Callable[[], int]) -> None:
        """`taken` counts the places in use, of which the settings say how many there are."""
        self.phase: Phase = "starting"
        self.meter = Meter()
        self._settings = settings
        self._taken = taken
        self._began = time.monotonic()
        self._progress: float | None = None
        self._load_s: float | None = None
        self._is_shut = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def uptime_s(self) -> float:
        """Return the seconds since the engine was made."""
        return round(time.monotonic() - self._began, 3)

    @property
    def progress(self) -> float | None:
        """Return the share of the weights in memory while they are loaded."""
        return self._progress

    def readiness(self) -> WorkerReadiness:
        """Report whether the model has proved itself since the load."""
        return WorkerReadiness(
            model=self._settings.name,
            is_ready=self.phase == "ready",
            phase=self.phase,
            progress=self._progress,
            load_s=self._load_s,
            kind=self._settings.kind,
        )

    # -- who may enter ---------------------------------------------------------------------------------------------

    def check(self, model: M | None) -> M:
        """Return the model where a request may enter that takes one place.

        Raises UnavailableError.
        """
        if self.phase == "draining":
            raise self._counted(refusals.ending())
        if self.phase == "failed":
            raise self._counted(refusals.broken(BROKEN))
        if model is None or self.phase in {"starting", "loading", "warming"}:
            raise self._counted(refusals.starting(self.phase, self._progress))
        self.check_places(1)
        return model

    def check_places(self, more: int) -> None:
        """Raise UnavailableError unless so many more places are free."""
        places = self._settings.places
        if self._taken() + more > places:
            raise self._counted(refusals.full(self.meter.wait_s(places)))

    def check_not_shut(self) -> None:
        """Raise UnavailableError where the end has overtaken a request that had entered."""
        if self._is_shut:
            raise self._counted(refusals.ending("The worker ended while it read the request."))

    def note_places(self) -> None:
        """Look again at the places in use: call it after every change."""
        if self._taken():
            self._is_empty.clear()
        else:
            self._is_empty.set()

    def _counted(self, refusal: UnavailableError) -> UnavailableError:
        self.meter.refused += 1
        return refusal

    # -- phases ----------------------------------------------------------------------------------------------------

    def follow(self, progress: Progress) -> None:
        """Enter the phase that the engine's thread reports; one on its way when the end began does not undo that."""
        if self.phase not in {progress.phase, "draining", "failed"}:
            logger.info("%s: %s", progress.phase, self._settings.name)
            self.phase = progress.phase
        if progress.phase == "ready" and self._load_s is None:
            self._load_s = self.uptime_s
        self._progress = progress.share

    def fail(self) -> None:
        """Let nobody enter any more: the model has stopped working."""
        self.phase = "failed"

    def shut(self) -> None:
        """Note that no answer will come any more."""
        self._is_shut = True

    async def drain(self) -> None:
        """Let nobody enter any more, and wait until who is inside has left, for `drain_s`."""
        self.phase = "draining"
        logger.info("draining: %d places in use", self._taken())
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._is_empty.wait()
        except TimeoutError:
            logger.warning("the drain ended with %d places in use", self._taken())
