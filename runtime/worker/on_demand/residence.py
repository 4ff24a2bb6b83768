"""I/O: a model that is in memory only while it is used: loaded when it is asked for, dropped when it has been idle.

Everything here runs on the event loop. One task at a time changes what is in memory: it loads (makes room among the
node's other on-demand workers, then starts a fresh engine) or it unloads. Between "the model is loaded" and "a request
uses it" nothing is awaited, so no model is dropped under a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Literal

from runtime.worker.on_demand import words
from runtime.worker.on_demand.attempts import Attempts
from runtime.worker.on_demand.hosting import E, Make
from runtime.worker.on_demand.place import Place, Standing
from runtime.worker.on_demand.registry import UNLOAD_S, NoRoomError
from runtime.worker.on_demand.slot import LoadFailedError, LoadStuckError, Slot
from runtime.worker.on_demand.use import Use
from runtime.worker.settings import OnDemand as Terms
from runtime.worker.settings import Settings
from schemas import exits
from schemas.messages import Phase
from schemas.on_demand import Loading

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks of an idle model at whether the node's memory still suffices: each reads a few small files."""

State = Literal["cold", "loading", "loaded", "unloading", "ending"]


class Residence(Generic[E]):
    """Owns the engine of the moment."""

    def __init__(self, settings: Settings, terms: Terms, make: Make[E], on_end: Callable[[int], None]) -> None:
        """`on_end` takes the exit code when the process must end; see `OnDemand`. Raises OSError."""
        self._place = Place(settings, terms)
        self.state: State = "cold"
        self.entered = time.monotonic()
        """When the state began, on the monotonic clock."""
        self.slot = Slot(make, self._note_end)
        self.use = Use()
        self.attempts = Attempts()
        self._name = settings.name
        self.idle_stop_s = terms.idle_stop_s
        """Seconds without a request after which the model is dropped; None keeps it."""
        self._on_end = on_end
        self._users = 0
        self._is_wanted = False
        """Somebody asked for the model while it was being dropped."""
        self._drops = 0
        """How often the model has left the memory."""
        self._expected_s = 0.0
        self._work: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    def start(self, url: str) -> None:
        """Tell the neighbours where this worker is; nothing is loaded."""
        self._place.url = url
        self._enter("cold")

    # -- use -------------------------------------------------------------------------------------------------------

    @property
    def is_used(self) -> bool:
        """Tell whether a request holds the model."""
        return self._users > 0

    def begin_use(self, *, is_probe: bool) -> None:
        """Note that a request holds the model, which must be loaded."""
        self._users += 1
        self._note_use(is_probe)
        # Between the first request's begin and the last one's end a neighbour has nothing to learn.
        if self._users == 1:
            self._tell()

    def end_use(self, *, is_probe: bool) -> None:
        """Note that a request holds it no longer."""
        self._users -= 1
        self._note_use(is_probe)
        if not self._users:
            self._tell()
        self._arm()

    def _note_use(self, is_probe: bool) -> None:
        if not is_probe:
            self.use.note(time.monotonic(), time.time())

    # -- loading ---------------------------------------------------------------------------------------------------

    @property
    def is_decided(self) -> bool:
        """Tell whether it is known what becomes of a request: not while room is being made."""
        return self.slot.has_started or self.state != "loading"

    def wake(self) -> None:
        """Begin to load, once for all who ask; after a failure not before its backoff is over."""
        if self.state == "unloading":
            self._is_wanted = True
        elif self.state == "cold" and self._work is None and self.attempts.may_begin(time.monotonic()):
            self._expected_s = self._place.expected_s()
            self._enter("loading")
            self._work = asyncio.create_task(self._load())

    async def until_changed(self, limit_s: float) -> None:
        """Wait until the state or what is known of a load changes, for at most `limit_s`."""
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await changed.wait()

    def loading(self) -> Loading:
        """Say how far a load is."""
        if self.state != "loading":
            return Loading(phase=self.phase)
        progress = self.slot.engine.readiness().progress if self.slot.has_started else None
        return words.loading(self.phase, self._expected_s, time.monotonic() - self.entered, progress or 0.0)

    async def _load(self) -> None:
        began = time.monotonic()
        try:
            limit = self._place.longest_s()
            await self._place.claim(self._standing())
            self.slot.start()
            self._notify()
            await self.slot.until_ready(limit)
        except NoRoomError as error:
            if str(error) != self.attempts.shortage:
                logger.info("no room: %s", error)
            self.attempts.note_shortage(str(error), time.monotonic())
            self._work = None
            self._enter("cold")
        except LoadFailedError as error:
            await self._fail(str(error))
        except LoadStuckError as error:
            logger.critical("%s", error)
            self._on_end(exits.LOAD_STUCK)
        except Exception as error:
            # Whatever a load runs into, the next request may try again.
            logger.exception("the load failed")
            await self._fail(f"{error or type(error).__name__}")
        else:
            now = time.monotonic()
            load_s = round(now - began, 3)
            self.attempts.note_load(load_s)
            self._place.remember_load(load_s)
            self.use.note(now, time.time(), is_fresh=True)
            self._work = None
            self._enter("loaded")
            self._arm()

    async def _fail(self, reason: str) -> None:
        logger.error("the load failed, next try in %.0f s at the earliest: %s", self.attempts.backoff_s, reason)
        if not await self._discard():
            return
        self.attempts.note_failure(reason, time.monotonic())
        self._work = None
        self._enter("cold")

    # -- unloading -------------------------------------------------------------------------------------------------

    async def unload(self, key: str | None) -> bool | None:
        """Drop the model for a neighbour, or with no key for the orchestrator, which has shown another one.

        None where the key is wrong, False where the model is in use. One that was dropped and is asked for at once
        has left the memory all the same: it comes back only where there is room for it.
        """
        if key is not None and not self._place.is_key(key):
            return None
        before = self._drops
        if self.state == "unloading" and self._work is not None:
            await asyncio.shield(self._work)
        elif self._is_idle():
            logger.info("the model is dropped for another one")
            await asyncio.shield(self._begin_unload())
        return self.state == "cold" or self._drops > before

    def _begin_unload(self) -> asyncio.Task[None]:
        self._is_wanted = False
        self._enter("unloading")
        self._work = asyncio.create_task(self._unload())
        return self._work

    async def _unload(self) -> None:
        if not await self._discard():
            return
        self._work = None
        self._drops += 1
        self._enter("cold")
        if self._is_wanted:
            self.wake()

    async def _discard(self) -> bool:
        """Drop the engine; False where its thread does not end, which holds the memory: the process must go."""
        is_done = await self.slot.empty(UNLOAD_S, lambda: self.state == "ending")
        if not is_done and self.state != "ending":
            logger.critical("the model cannot be dropped: its thread does not end within %.0f s", UNLOAD_S)
            self._on_end(exits.FAILED)
        return is_done

    def _is_idle(self) -> bool:
        return self.state == "loaded" and not self._users and not self.use.is_fresh

    def _arm(self) -> None:
        """Look again when this model may have been idle for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.state != "loaded" or self._users:
            return
        due, now = self.use.next_look(self.idle_stop_s), time.monotonic()
        wait = LOOK_S if due is None else min(LOOK_S, max(0.0, due - now))
        self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.state != "loaded" or self._users:
            return
        now = time.monotonic()
        if self.use.is_over(now, self.idle_stop_s):
            logger.info("idle for %.0f s: the model is dropped", self.idle_stop_s)
            self._begin_unload()
            return
        if self.use.is_fresh and self.use.is_stale(now):
            self.use.is_fresh = False
            self._tell()
        if self._is_idle() and self._place.is_too_much(self._standing()):
            logger.info("less memory is left to models on demand: the model is dropped")
            self._begin_unload()
            return
        self._arm()

    # -- the end ---------------------------------------------------------------------------------------------------

    def _note_end(self) -> None:
        """End the process with the engine's thread; during a load it is the load that failed."""
        if self.state == "loaded":
            self._on_end(exits.FAILED)

    async def drain(self) -> None:
        """Lend the model to nobody any more, let requests under way finish, and leave the registry."""
        work, is_loading = self._work, self.state == "loading"
        self._enter("ending")
        self._arm()
        if work is not None:
            if is_loading:
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        if self.slot.has_started:
            await self.slot.engine.drain()
        self._place.leave()

    # -- what changes, and who is told -----------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Return the phase for those who know of no states."""
        own = self.slot.engine.gate.phase
        match self.state:
            case "loaded":
                return own
            case "loading":
                return own if own in {"loading", "warming"} else "loading"
            case "ending":
                return "draining"
            case "cold" | "unloading":
                return self.state

    def _enter(self, state: State) -> None:
        if self.state == "ending":
            return
        if state != self.state:
            logger.info("%s: %s", state, self._name)
        self.state, self.entered = state, time.monotonic()
        # What is claimed is written by the claim itself, under the node's lock.
        if state != "loading":
            self._tell()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _tell(self) -> None:
        self._place.tell(self._standing())

    def _standing(self) -> Standing:
        return Standing(self.phase, self.state != "cold", self._is_idle(), self.use.at)
