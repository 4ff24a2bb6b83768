"""I/O: lend a model that is in memory only while it is used: requests wait for it or hear when to come back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runtime.worker import refusals
from runtime.worker.described import Described
from runtime.worker.errors import UnavailableError
from runtime.worker.on_demand import words
from runtime.worker.on_demand.attempts import ROOM_POLL_S
from runtime.worker.on_demand.hosting import Call, E, Host, Make
from runtime.worker.on_demand.residence import Residence
from runtime.worker.settings import OnDemand as Terms
from runtime.worker.settings import Settings
from schemas.messages import WorkerReadiness, WorkerStatus
from schemas.on_demand import OnDemandReport


class OnDemand(Host[E]):
    """Admits requests to an engine that is loaded for them. Everything here runs on the event loop."""

    def __init__(self, settings: Settings, terms: Terms, make: Make[E], on_end: Callable[[int], None]) -> None:
        """`on_end` takes the exit code when the process must end.

        It must when the engine ended by itself while it served, and when its thread does not end.

        Raises OSError where the registry cannot be written.
        """
        self.started_at = int(time.time())
        self._began = time.monotonic()
        self._places = settings.places
        self._model = Residence(settings, terms, make, on_end)
        self._waiting = 0
        """Requests that wait for the model."""
        self._described: Described | None = None
        """What the first load has shown of the model."""

    def start(self, url: str) -> None:
        """Tell the neighbours where this worker is; nothing is loaded."""
        self._model.start(url)

    @property
    def is_alive(self) -> bool:
        """Tell whether a request can be answered, now or after a load; at the end, whether the engine still runs."""
        slot = self._model.slot
        if self._model.state == "ending":
            return slot.is_alive
        return not (self._model.state == "loaded" and slot.has_ended)

    @asynccontextmanager
    async def holding(self, call: Call) -> AsyncIterator[E]:
        """Lend the engine while the block runs, loading it where it is cold.

        Raises UnavailableError while there is nothing to lend, which a client that waits hears at the end of its wait.
        """
        if not self._is_loaded():
            await self._wait(call)
        engine = self._model.slot.engine
        self._described = self._described or engine.describe()
        self._model.begin_use(is_probe=call.is_probe)
        try:
            yield engine
        finally:
            self._model.end_use(is_probe=call.is_probe)

    async def unload(self, key: str | None) -> bool | None:
        """Drop the model for a neighbour, or with no key for the orchestrator; see `Residence.unload`."""
        return await self._model.unload(key)

    async def drain(self) -> None:
        """Admit nobody any more, let requests under way finish, and leave the registry."""
        await self._model.drain()

    # -- who waits -------------------------------------------------------------------------------------------------

    async def _wait(self, call: Call) -> None:
        if call.is_probe and self._model.state != "ending":
            raise words.absent(self._model.loading())
        if self._waiting >= self._places:
            self._model.slot.meter.refused += 1
            raise words.crowded(self._model.loading())
        self._waiting += 1
        try:
            await self._until_loaded(time.monotonic() + call.wait_s)
        finally:
            self._waiting -= 1

    async def _until_loaded(self, due: float) -> None:
        while not self._is_loaded():
            if self._model.state == "ending":
                raise refusals.ending()
            self._model.wake()
            if self._backoff_left_s() is not None:
                raise self._refusal()
            # The task that was just made says after its first steps whether there is room.
            left = max(due - time.monotonic(), 0.0)
            if left == 0.0 and self._model.is_decided:
                raise self._refusal()
            await self._model.until_changed(min(left or ROOM_POLL_S, ROOM_POLL_S))
            if left == 0.0 and not self._is_loaded():
                raise self._refusal()

    def _is_loaded(self) -> bool:
        return self._model.state == "loaded"

    def _backoff_left_s(self) -> float | None:
        return self._model.attempts.backoff_left_s(time.monotonic()) if self._model.state == "cold" else None

    def _refusal(self) -> UnavailableError:
        """Say why the model cannot be used now, and when to come back."""
        self._model.slot.meter.refused += 1
        attempts, left = self._model.attempts, self._backoff_left_s()
        if attempts.failure is not None and left is not None:
            return words.failed(attempts.failure, left)
        if self._model.state == "cold" and attempts.shortage is not None:
            return words.no_room(attempts.shortage, self._model.loading())
        return words.coming(self._model.loading())

    # -- what is told ----------------------------------------------------------------------------------------------

    def readiness(self) -> WorkerReadiness:
        """Report the engine's readiness as it is now; a cold worker is not ready and takes requests."""
        found = self._model.slot.engine.readiness()
        changes = {
            "phase": self._model.phase,
            "is_ready": found.is_ready and self._is_loaded(),
            "progress": self._model.loading().progress,
            "load_s": self._model.attempts.load_s,
            "on_demand": self._report(),
        }
        return found.model_copy(update=changes)

    def status(self) -> WorkerStatus:
        """Report the engine of the moment, with the counters of all of them."""
        uptime = round(time.monotonic() - self._began, 3)
        changes = {"phase": self._model.phase, "uptime_s": uptime, "on_demand": self._report()}
        return self._model.slot.engine.status().model_copy(update=changes)

    def describe(self) -> Described | None:
        """Tell what the engine says, or said when it was there."""
        return self._model.slot.engine.describe() or self._described

    def expires_at(self) -> float | None:
        """Tell when the model is dropped unless somebody asks; None where it stays, is in use or is not there."""
        last, stop_s = self._model.use.last, self._model.idle_stop_s
        if stop_s is None or last is None or self._model.is_used or not self._is_loaded():
            return None
        return time.time() + max(0.0, last + stop_s - time.monotonic())

    def _report(self) -> OnDemandReport:
        model, now = self._model, time.monotonic()
        used = model.use.last if self._is_loaded() and not model.is_used else None
        return OnDemandReport(
            since_s=round(now - model.entered, 1),
            idle_s=None if used is None else round(now - used, 1),
            eta_s=model.loading().eta_s,
            failure=model.attempts.failure or model.attempts.shortage,
            loads=model.attempts.loads,
        )
