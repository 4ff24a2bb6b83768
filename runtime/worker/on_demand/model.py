"""I/O: a model that is in memory only while it is used: loaded by the first request, dropped when it has been idle.

Everything here runs on the event loop. One task at a time changes what is in memory: it loads (makes room among the
node's other on-demand workers, then starts a fresh engine) or it unloads. Between "the model is loaded" and "a request
holds it" nothing is awaited, so no model is dropped under a request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from runtime.worker import refusals
from runtime.worker.errors import UnavailableError
from runtime.worker.on_demand import memory, words
from runtime.worker.on_demand.hosting import Call, E, Host, Make
from runtime.worker.on_demand.registry import UNLOAD_S, Entry, NoRoomError, Registry
from runtime.worker.on_demand.room import expected_s, longest_s
from runtime.worker.on_demand.slot import LoadFailedError, LoadStuckError, Slot
from runtime.worker.on_demand.use import Use
from runtime.worker.settings import OnDemand as Terms
from runtime.worker.settings import Settings
from schemas import exits
from schemas.messages import Phase, WorkerReadiness, WorkerStatus
from schemas.on_demand import Loading, OnDemandReport

logger = logging.getLogger(__name__)

WAIT_POLL_S = 1.0
"""Between two tries to make room, however many clients wait: each takes the node's lock."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
"""After a load that failed; doubled each time."""

_State = Literal["cold", "loading", "loaded", "unloading", "ending"]


class OnDemand(Host[E]):
    """Owns the engine of the moment."""

    def __init__(self, settings: Settings, terms: Terms, make: Make[E], on_end: Callable[[int], None]) -> None:
        """`on_end` takes the exit code when the process must end.

        It must when the engine ended by itself while it served, and when its thread does not end.

        Raises OSError where the registry cannot be written.
        """
        self.started_at = int(time.time())
        self._settings = settings
        self._terms = terms
        self._on_end = on_end
        self._directory = Path(settings.model_dir)
        self._registry = Registry(Path(terms.room), None if terms.budget is None else Path(terms.budget))
        self._need = terms.memory_bytes or memory.need_bytes(self._directory)
        self._key = secrets.token_urlsafe(24)
        self._url = ""
        self._began = self._entered = time.monotonic()
        self._state: _State = "cold"
        self._slot = Slot(make, self._note_end)
        self._users = 0
        self._waiting = 0
        """Requests that wait for the model."""
        self._is_wanted = False
        """Somebody asked for the model while it was being dropped."""
        self._use = Use()
        self._expected_s = 0.0
        self._load_s: float | None = None
        self._loads = 0
        self._no_room: str | None = None
        self._room_at = 0.0
        """When room may be made again."""
        self._failure: str | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._work: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    def start(self, url: str) -> None:
        """Tell the neighbours where this worker is; nothing is loaded."""
        self._url = url
        self._enter("cold")

    @property
    def is_alive(self) -> bool:
        """Tell whether a request can be answered, now or after a load; at the end, whether the engine still runs."""
        if self._state == "ending":
            return self._slot.is_alive
        return not (self._state == "loaded" and self._slot.has_ended)

    # -- requests --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def holding(self, call: Call) -> AsyncIterator[E]:
        """Lend the engine while the block runs, loading it where it is cold.

        Raises UnavailableError while there is nothing to lend, which a client that waits hears at the end of its wait.
        """
        engine = self._slot.engine if self._is_loaded() else await self._awaited(call)
        # Between the first request's begin and the last one's end a neighbour has nothing to learn.
        self._users += 1
        self._note_use(call)
        if self._users == 1:
            self._publish()
        try:
            yield engine
        finally:
            self._users -= 1
            self._note_use(call)
            if not self._users:
                self._publish()
            self._arm()

    async def _awaited(self, call: Call) -> E:
        if call.is_probe and self._state != "ending":
            raise words.absent(self._loading())
        if self._waiting >= self._settings.places:
            self._slot.meter.refused += 1
            raise words.crowded(self._loading())
        self._waiting += 1
        try:
            return await self._loaded(time.monotonic() + call.wait_s)
        finally:
            self._waiting -= 1

    async def _loaded(self, due: float) -> E:
        while not self._is_loaded():
            if self._state == "ending":
                raise refusals.ending()
            self._wake()
            if self._is_backing_off():
                raise self._refusal()
            # The task that was just made says after its first steps whether there is room.
            left = max(due - time.monotonic(), 0.0)
            changed = self._changed
            if left == 0.0 and self._is_decided():
                raise self._refusal()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left or WAIT_POLL_S, WAIT_POLL_S)):
                    await changed.wait()
            if left == 0.0 and not self._is_loaded():
                raise self._refusal()
        return self._slot.engine

    def _is_loaded(self) -> bool:
        return self._state == "loaded"

    def _is_backing_off(self) -> bool:
        return self._state == "cold" and self._failure is not None and time.monotonic() < self._retry_at

    def _is_decided(self) -> bool:
        """Tell whether it is known what becomes of a request: not while room is being made."""
        return self._slot.has_started or self._state != "loading"

    def _note_use(self, call: Call) -> None:
        if not call.is_probe:
            self._use.note(time.monotonic(), time.time())

    def _refusal(self) -> UnavailableError:
        """Say why the model cannot be used now, and when to come back."""
        self._slot.meter.refused += 1
        if self._failure is not None and self._is_backing_off():
            return words.failed(self._failure, self._retry_at - time.monotonic())
        if self._state == "cold" and self._no_room is not None:
            return words.no_room(self._no_room, self._loading())
        return words.coming(self._loading())

    # -- loading and unloading -------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Begin to load, once for all who ask; after a failure not before its backoff is over."""
        if self._state == "unloading":
            self._is_wanted = True
        elif self._state == "cold" and self._work is None and time.monotonic() >= max(self._retry_at, self._room_at):
            self._expected_s = expected_s(
                self._registry.last_load_s(self._settings.model_dir), memory.weights_bytes(self._directory)
            )
            self._enter("loading")
            self._work = asyncio.create_task(self._load())

    async def _load(self) -> None:
        began = time.monotonic()
        try:
            limit = longest_s(memory.weights_bytes(self._directory))
            await self._registry.claim(self._entry())
            self._slot.start()
            self._notify()
            await self._slot.until_ready(limit)
        except NoRoomError as error:
            if str(error) != self._no_room:
                logger.info("no room: %s", error)
            self._no_room, self._room_at = str(error), time.monotonic() + WAIT_POLL_S
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
            self._load_s = round(now - began, 3)
            self._registry.remember_load(self._settings.model_dir, self._load_s)
            self._loads += 1
            self._no_room = self._failure = None
            self._failures = 0
            self._use.note(now, time.time(), is_fresh=True)
            self._work = None
            self._enter("loaded")
            self._arm()

    async def _fail(self, reason: str) -> None:
        backoff = min(FIRST_BACKOFF_S * 2.0 ** min(self._failures, 10), LONGEST_BACKOFF_S)
        logger.error("the load failed, next try in %.0f s at the earliest: %s", backoff, reason)
        if not await self._discard():
            return
        self._failures += 1
        self._failure, self._retry_at = reason, time.monotonic() + backoff
        self._work = None
        self._enter("cold")

    async def _unload(self) -> None:
        if not await self._discard():
            return
        self._work = None
        self._enter("cold")
        if self._is_wanted:
            self._wake()

    async def _discard(self) -> bool:
        """Drop the engine; False where its thread does not end, which holds the memory: the process must go."""
        is_done = await self._slot.empty(UNLOAD_S, lambda: self._state == "ending")
        if not is_done and self._state != "ending":
            logger.critical("the model cannot be dropped: its thread does not end within %.0f s", UNLOAD_S)
            self._on_end(exits.FAILED)
        return is_done

    def _note_end(self) -> None:
        """End the process with the engine's thread; during a load it is the load that failed."""
        if self._state == "loaded":
            self._on_end(exits.FAILED)

    # -- idleness --------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Look again when this model may have been idle for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._next_look()
        if due is not None:
            wait = max(0.0, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _next_look(self) -> float | None:
        if self._state != "loaded" or self._users:
            return None
        return self._use.next_look(self._terms.idle_stop_s)

    def _look(self) -> None:
        self._timer = None
        if self._state != "loaded" or self._users:
            return
        now = time.monotonic()
        if self._use.is_over(now, self._terms.idle_stop_s):
            logger.info("idle for %.0f s: the model is dropped", self._terms.idle_stop_s)
            self._begin_unload()
            return
        if self._use.is_fresh and self._use.is_stale(now):
            self._use.is_fresh = False
            self._publish()
        self._arm()

    def _begin_unload(self) -> asyncio.Task[None]:
        self._is_wanted = False
        self._enter("unloading")
        self._work = asyncio.create_task(self._unload())
        return self._work

    async def unload(self, key: str) -> bool | None:
        """Drop the model for a neighbour; None where its key is wrong, False where the model is in use."""
        if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._key.encode()):
            return None
        if self._state == "unloading" and self._work is not None:
            await asyncio.shield(self._work)
        elif self._is_idle():
            logger.info("the model is dropped for another one")
            await asyncio.shield(self._begin_unload())
        return self._state == "cold"

    def _is_idle(self) -> bool:
        return self._state == "loaded" and not self._users and not self._use.is_fresh

    # -- the end ---------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Admit nobody any more, let requests under way finish, and leave the registry."""
        work, is_loading = self._work, self._state == "loading"
        self._enter("ending")
        self._arm()
        if work is not None:
            if is_loading:
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        if self._slot.has_started:
            await self._slot.engine.drain()
        self._registry.close()

    # -- what is told ----------------------------------------------------------------------------------------------

    def readiness(self) -> WorkerReadiness:
        """Report the engine's readiness as it is now; a cold worker is not ready and takes requests."""
        found = self._slot.engine.readiness()
        changes = {
            "phase": self._phase(),
            "is_ready": found.is_ready and self._state == "loaded",
            "progress": self._loading().progress,
            "load_s": self._load_s,
            "on_demand": self._report(),
        }
        return found.model_copy(update=changes)

    def status(self) -> WorkerStatus:
        """Report the engine of the moment, with the counters of all of them."""
        uptime = round(time.monotonic() - self._began, 3)
        changes = {"phase": self._phase(), "uptime_s": uptime, "on_demand": self._report()}
        return self._slot.engine.status().model_copy(update=changes)

    def _phase(self) -> Phase:
        own = self._slot.engine.gate.phase
        match self._state:
            case "loaded":
                return own
            case "loading":
                return own if own in {"loading", "warming"} else "loading"
            case "ending":
                return "draining"
            case "cold" | "unloading":
                return self._state

    def _loading(self) -> Loading:
        if self._state != "loading":
            return Loading(phase=self._phase())
        progress = self._slot.engine.readiness().progress if self._slot.has_started else 0.0
        return words.loading(self._phase(), self._expected_s, time.monotonic() - self._entered, progress)

    def _report(self) -> OnDemandReport:
        now = time.monotonic()
        is_idle = self._state == "loaded" and not self._users and self._use.last is not None
        return OnDemandReport(
            since_s=round(now - self._entered, 1),
            idle_s=round(now - (self._use.last or now), 1) if is_idle else None,
            eta_s=self._loading().eta_s,
            failure=self._failure or self._no_room,
            loads=self._loads,
        )

    def _entry(self) -> Entry:
        return Entry(
            service=self._terms.service,
            model=self._settings.name,
            pid=os.getpid(),
            url=self._url,
            key=self._key,
            memory_bytes=0 if self._state == "cold" else self._need,
            phase=self._phase(),
            is_idle=self._is_idle(),
            used_at=self._use.at,
        )

    def _enter(self, state: _State) -> None:
        if self._state == "ending":
            return
        if state != self._state:
            logger.info("%s: %s", state, self._settings.name)
        self._state, self._entered = state, time.monotonic()
        # What is claimed is written by the claim itself, under the node's lock.
        if state != "loading":
            self._publish()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _publish(self) -> None:
        try:
            self._registry.write(self._entry())
        except OSError as error:
            logger.warning("the neighbours cannot be told: %s", error)
