"""I/O: rank 0 of a group: it forms the group, tells every rank what to compute, and ends all of them together.

The event loop owns the sockets and everything known of the other ranks. The generation thread gives it each round
before computing it and gets a verdict when every rank has computed the same. Whatever goes wrong goes through `fail`,
once: the other ranks are told, then `on_end` is called, and the process must answer its clients and end. The thread may
be inside a collective that never returns by then, so nobody waits for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from runtime.worker.group import control, wire
from runtime.worker.group.identity import identify
from runtime.worker.group.lead_rounds import Pending, Rounds
from runtime.worker.group.lead_thread import LeadThread
from runtime.worker.group.membership import FORM_S, HEARTBEAT_S, TICK_S, End, Pulse, Silence, hello
from runtime.worker.settings import Group, Settings
from runtime.worker.steps import GroupEndedError
from schemas import exits
from schemas.messages import WorkerGroup, WorkerRank

logger = logging.getLogger(__name__)

EVIDENCE_S = 1.5
"""A broken collective says that some rank is gone; the control plane says which one within this time: after the last
of `_PROBES_S`, also where the machine is busy."""
LEAVE_GRACE_S = 2.0
"""Who stops a group by a TERM to every process reaches some rank before rank 0."""
_PROBES_S = (0.0, 0.02, 0.1, 0.3, 1.0)
"""When to look whose connection ended: ZeroMQ tells that one did before it takes the rank off its list."""


@dataclass(slots=True)
class _Rank:
    silence: Silence
    hello: wire.Hello | None = None
    beat: wire.Heartbeat | None = None
    is_loaded: bool = False


class Lead:
    """Owns the group."""

    def __init__(self, settings: Settings, group: Group, on_end: Callable[[End], None]) -> None:
        """Listen for the other ranks; `on_end` is called once, on the loop, when the group must end.

        Raises ControlError.
        """
        self.end: End | None = None
        self.is_draining = False
        self._settings = settings
        self._group = group
        self._on_end = on_end
        self._pulse: Pulse
        self._loop = asyncio.get_running_loop()
        self._server = control.Server(group)
        now = time.monotonic()
        self._ranks = {rank: _Rank(Silence(now)) for rank in range(1, group.size)}
        self._arrived = asyncio.Event()
        self.formed: Future[None] = Future()
        """All ranks are there and alike."""
        self.loaded: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._rounds = Rounds(group.size)
        self.thread = LeadThread(self, self._loop, settings, group)
        """The side of the generation thread."""
        self._tasks: list[asyncio.Task[None]] = []

    # On the loop.

    def start(self, pulse: Pulse) -> None:
        """Begin to form the group; `pulse` tells how this process is."""
        self._pulse = pulse
        for work in (self._form, self._receive, self._watch_connections, self._tick):
            task = self._loop.create_task(work())
            task.add_done_callback(self._notice)
            self._tasks.append(task)

    def drain(self) -> None:
        """Note that this process was asked to stop: ranks that leave are no loss any more, and nobody is admitted."""
        self.is_draining = True
        for waiting in (self.formed, self.loaded):
            if not waiting.done():
                waiting.set_exception(GroupEndedError("the group was stopped"))

    async def close(self) -> None:
        """End the other ranks, with code 0 unless the group has failed."""
        if self.end is None:
            self._broadcast(wire.Shutdown(code=exits.OK, message="the group was stopped"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close()

    def report(self) -> WorkerGroup:
        """Return what is known of the group."""
        now = time.monotonic()
        phase, progress, memory = self._pulse()
        own = WorkerRank(rank=0, phase=phase, progress=progress, heartbeat_age_s=None, memory=memory)
        ranks = [own.model_copy(update={"round": self._rounds.done, "link": self._rounds.link(0)})]
        for number, rank in self._ranks.items():
            beat = rank.beat
            ranks.append(
                WorkerRank(
                    rank=number,
                    phase=beat.phase if beat else "starting",
                    progress=beat.progress if beat else None,
                    heartbeat_age_s=round(rank.silence.age_s(now), 3) if rank.hello else None,
                    memory=beat.memory if beat else None,
                    round=beat.round if beat else 0,
                    link=self._rounds.link(number),
                )
            )
        group = self._group
        return WorkerGroup(
            size=group.size,
            backend=group.backend,
            strategy=group.strategy,
            launch=group.launch,
            rounds=self._rounds.done,
            ranks=tuple(ranks),
        )

    def refuse(self, words: str) -> None:
        """End the group, whose answers are wrong."""
        self.fail(exits.CANARY_FAILED, words)

    def fail(self, code: int, message: str) -> None:
        """End the group; only the first cause counts."""
        if self.end is not None:
            return
        self.end = End(code, message)
        logger.critical("the group ends: %s", message)
        self._broadcast(wire.Shutdown(code=code, message=message))
        # From now on nobody is waited for; a thread that waits for us may go.
        self._rounds.give_up(message)
        for waiting in (self.formed, self.loaded, self.ended):
            if not waiting.done():
                waiting.set_exception(GroupEndedError(message))
        self._on_end(self.end)

    def _notice(self, task: asyncio.Task[None]) -> None:
        """Let no task die unseen: the group would wait for it."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("rank 0 failed", exc_info=error)
            self.fail(exits.RANK_FAILED, f"rank 0 failed: {error!r}")

    async def _form(self) -> None:
        try:
            own = hello(self._settings, self._group, await asyncio.to_thread(identify, Path(self._settings.model_dir)))
        except OSError as error:
            self.fail(exits.RANK_FAILED, f"the model cannot be read: {error}")
            return
        try:
            async with asyncio.timeout(FORM_S):
                await self._arrived.wait()
        except TimeoutError:
            if self.is_draining:
                return
            missing = [str(number) for number, rank in self._ranks.items() if rank.hello is None]
            self.fail(exits.GROUP_NOT_FORMED, f"rank {', '.join(missing)} did not arrive within {FORM_S:g} s")
            return
        if self.formed.done():
            return
        for number, rank in self._ranks.items():
            found = wire.differences(own, rank.hello) if rank.hello else []
            if rank.hello and rank.hello.rank != number:
                found.append(f"it calls itself rank {rank.hello.rank}")
            if found:
                self.fail(exits.GROUP_REFUSED, f"rank {number} differs from rank 0: {'; '.join(found)}")
                return
        logger.info("all %d ranks are there and alike", self._group.size)
        self._broadcast(wire.Welcome())
        self.formed.set_result(None)

    async def _receive(self) -> None:
        while True:
            try:
                number, message = await self._server.receive()
            except control.ControlError as error:
                self.fail(exits.GROUP_REFUSED, str(error))
                continue
            self._ranks[number].silence.heard(time.monotonic())
            self._take(number, message)

    def _take(self, number: int, message: wire.Message) -> None:
        rank = self._ranks[number]
        match message:
            case wire.Done():
                self.take_done(number, message.number, message.digest, message.seconds)
            case wire.Heartbeat():
                rank.beat = message
                rank.silence.phase = message.phase
            case wire.Hello():
                rank.hello = message
                if all(rank.hello for rank in self._ranks.values()):
                    self._arrived.set()
            case wire.Loaded():
                rank.is_loaded = True
                if all(rank.is_loaded for rank in self._ranks.values()) and not self.loaded.done():
                    self.loaded.set_result(None)
            case wire.Failed():
                self.suspect(message.code, f"rank {number} failed: {message.message}")
            case wire.Leaving():
                self._loop.call_later(LEAVE_GRACE_S, self._miss, number)
            case wire.Welcome() | wire.Round() | wire.Probe() | wire.Shutdown():
                self.fail(exits.GROUP_REFUSED, f"rank {number} sent a {message.kind}, which only rank 0 may")
            case _:
                assert_never(message)

    def _miss(self, number: int) -> None:
        if not self.is_draining:
            self.fail(exits.RANK_LOST, f"rank {number} was stopped")

    def suspect(self, code: int, message: str) -> None:
        """End the group soon: another message may still tell the cause of this one."""
        self._loop.call_later(EVIDENCE_S, self.fail, code, message)

    async def _watch_connections(self) -> None:
        async for _ in self._server.disconnections():
            for delay_s in _PROBES_S:
                self._loop.call_later(delay_s, self._probe)

    def _probe(self) -> None:
        beat = self._heartbeat()
        for number, rank in self._ranks.items():
            if rank.hello is not None and not self._server.send(number, beat) and not self.is_draining:
                self.fail(exits.RANK_LOST, f"rank {number} was lost")

    async def _tick(self) -> None:
        beaten = last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            was_stopped = now - last > TICK_S + HEARTBEAT_S
            last = now
            if now - beaten >= HEARTBEAT_S:
                beaten = now
                self.beat()
            # What the others sent while this process itself did not run is read before they are judged.
            if not was_stopped:
                self._judge(now)

    def _judge(self, now: float) -> None:
        for number, rank in self._ranks.items():
            if rank.hello is not None and rank.silence.is_over(now):
                self.fail(exits.RANK_SILENT, f"rank {number} was silent for {rank.silence.age_s(now):.0f} s")
        stalled = self._rounds.stalled(now)
        if stalled is not None:
            self.fail(exits.ROUND_STALLED, stalled)

    def beat(self) -> None:
        """Tell the others how this rank is."""
        beat = self._heartbeat()
        for number in self._ranks:
            self._server.send(number, beat)

    def _heartbeat(self) -> bytes:
        phase, progress, memory = self._pulse()
        return wire.encode(wire.Heartbeat(phase=phase, progress=progress, round=self._rounds.done, memory=memory))

    def _broadcast(self, message: wire.Message) -> None:
        frame = wire.encode(message)
        for number in self._ranks:
            self._server.send(number, frame)

    def begin(self, pending: Pending, frame: bytes) -> None:
        """Send a round to the others."""
        if self.end is not None:
            pending.verdict.set_exception(GroupEndedError(self.end.message))
            return
        self._rounds.begin(pending)
        for number in self._ranks:
            if not self._server.send(number, frame):
                self.suspect(exits.RANK_LOST, f"rank {number} was lost")

    def take_done(self, rank: int, number: int, digest: str, seconds: float | None = None) -> None:
        """Note what a rank has computed."""
        if self.end is not None:
            return
        fault = self._rounds.take(rank, number, digest, seconds)
        if fault is not None:
            self.fail(exits.RANKS_DISAGREE, fault)
