"""I/O: a rank above 0: it says hello, computes what rank 0 says, and ends when rank 0 says so or is gone.

The event loop owns the socket; one thread owns the model and sleeps on its queue while there is nothing to compute.
"""

import asyncio
import logging
import queue
import signal
import threading
import time
from pathlib import Path
from typing import assert_never

from runtime.worker import status
from runtime.worker.compute import Compute
from runtime.worker.generation import KV_SAMPLE_ROUNDS
from runtime.worker.group import control, sharded, wire
from runtime.worker.group.identity import identify
from runtime.worker.group.link_probe import LinkProbe
from runtime.worker.group.membership import FORM_S, HEARTBEAT_S, TICK_S, End, Silence, hello
from runtime.worker.prompt_cache import open_prompt_cache
from runtime.worker.settings import Group, Settings
from schemas import exits
from schemas.messages import Phase

logger = logging.getLogger(__name__)

LAST_WORD_S = 3.0
"""How long rank 0's reason is waited for by a rank that has told it of an error."""
UNREAD_S = 0.3
"""What came before the connection ended is read first: it may be the reason."""


class Follower:
    """Owns this rank."""

    def __init__(self, settings: Settings, group: Group) -> None:
        """Begin to connect to rank 0."""
        self._settings = settings
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._client = control.Client(group)
        self._end: asyncio.Future[End] = self._loop.create_future()
        self._phase: Phase = "starting"
        self._progress: float | None = None
        self._round = 0
        self._model_bytes = self._kv_bytes = self._kept_bytes = 0
        self._lead = Silence(time.monotonic())
        self._is_welcome = False
        self._rounds: queue.SimpleQueue[wire.Round | wire.Probe] = queue.SimpleQueue()
        # A daemon: a collective that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="generation", daemon=True)

    async def run(self) -> End:
        """Follow until the end; return why it came."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._leave)
        tasks = [self._loop.create_task(work()) for work in (self._greet, self._receive, self._watch, self._tick)]
        for task in tasks:
            task.add_done_callback(self._notice)
        end = await self._end
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        return end

    # On the loop.

    def _finish(self, code: int, message: str) -> None:
        if not self._end.done():
            logger.log(
                logging.INFO if code == exits.OK else logging.CRITICAL, "rank %d ends: %s", self._group.rank, message
            )
            self._end.set_result(End(code, message))

    def _notice(self, task: asyncio.Task[None]) -> None:
        """Let no task die unseen: the group would wait for it."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("rank %d failed", self._group.rank, exc_info=error)
            self._fail(exits.RANK_FAILED, repr(error))

    def _send(self, message: wire.Message) -> None:
        if not self._end.done():
            self._client.send(wire.encode(message))

    def _leave(self) -> None:
        """Rank 0 decides what a TERM means: while it drains, this rank is still needed."""
        self._send(wire.Leaving())
        if not self._is_welcome:
            self._finish(exits.OK, "it was stopped before the group formed")

    def _enter(self, phase: Phase, progress: float | None = None) -> None:
        self._progress = progress
        if phase != self._phase:
            logger.info("%s: rank %d of %s", phase, self._group.rank, self._settings.name)
            self._phase = phase
            self._send(self._heartbeat())

    def _heartbeat(self) -> wire.Heartbeat:
        memory = status.memory(self._model_bytes, self._kv_bytes, self._kept_bytes)
        return wire.Heartbeat(phase=self._phase, progress=self._progress, round=self._round, memory=memory)

    async def _greet(self) -> None:
        try:
            identity = await asyncio.to_thread(identify, Path(self._settings.model_dir))
        except OSError as error:
            self._fail(exits.RANK_FAILED, f"the model cannot be read: {error}")
            return
        self._send(hello(self._settings, self._group, identity))

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._client.receive()
            except control.ControlError as error:
                self._finish(exits.GROUP_REFUSED, str(error))
                return
            self._lead.heard(time.monotonic())
            self._take(message)

    def _take(self, message: wire.Message) -> None:
        match message:
            case wire.Round() | wire.Probe():
                self._rounds.put(message)
            case wire.Heartbeat():
                self._lead.phase = message.phase
            case wire.Welcome():
                self._is_welcome = True
                self._lead.phase = "joining"
                # Told before the thread begins: joining locks the interpreter, and rank 0 must expect the silence.
                self._enter("joining")
                self._thread.start()
            case wire.Shutdown():
                self._finish(message.code, message.message)
            case wire.Hello() | wire.Loaded() | wire.Done() | wire.Failed() | wire.Leaving():
                self._finish(exits.GROUP_REFUSED, f"rank 0 sent a {message.kind}, which only the others may")
            case _:
                assert_never(message)

    async def _watch(self) -> None:
        code, words = await self._client.lost()
        if code == exits.RANK_LOST:
            await asyncio.sleep(UNREAD_S)
        self._finish(code, words)

    async def _tick(self) -> None:
        began = beaten = last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            was_stopped = now - last > TICK_S + HEARTBEAT_S
            last = now
            if now - beaten >= HEARTBEAT_S:
                beaten = now
                self._send(self._heartbeat())
            if was_stopped:
                continue
            if self._is_welcome:
                if self._lead.is_over(now):
                    self._finish(exits.RANK_SILENT, f"rank 0 was silent for {self._lead.age_s(now):.0f} s")
            elif now - began > FORM_S:
                self._finish(exits.GROUP_NOT_FORMED, f"rank 0 did not admit this rank within {FORM_S:g} s")

    def _fail(self, code: int, message: str) -> None:
        self._send(wire.Failed(code=code, message=message))
        self._loop.call_later(LAST_WORD_S, self._finish, code, message)

    # On the thread.

    def _main(self) -> None:
        try:
            compute, probe = self._open()
            self._loop.call_soon_threadsafe(self._send, wire.Loaded())
            while True:
                self._do(compute, probe, self._rounds.get())
        except BaseException as error:
            sharded.give_up(self._group)
            logger.critical("the generation thread died", exc_info=True)
            self._loop.call_soon_threadsafe(self._fail, sharded.exit_code_of(error), str(error))

    def _open(self) -> tuple[Compute, LinkProbe]:
        directory = Path(self._settings.model_dir)
        sharded.check(self._group, directory)
        joined = sharded.join(self._group)
        self._loop.call_soon_threadsafe(self._enter, "loading", 0.0)
        model = sharded.load_part(self._group, joined, directory, self._settings.max_context, self._note_progress)
        self._model_bytes = model.size_bytes
        self._loop.call_soon_threadsafe(self._enter, "ready")
        kept = open_prompt_cache(self._settings, sharded.largest(joined))
        compute = Compute(model, agree=sharded.agreement(joined), kept=kept)
        return compute, LinkProbe(joined)

    def _note_progress(self, share: float) -> None:
        self._progress = share

    def _do(self, compute: Compute, probe: LinkProbe, message: wire.Round | wire.Probe) -> None:
        if message.number != self._round + 1:
            raise RuntimeError(f"round {message.number} came after round {self._round}")
        self._round = message.number
        match message:
            case wire.Round():
                self._compute(compute, message)
            case wire.Probe():
                measured = probe.measure(message.numbers, message.sums)
                digest = wire.digest_of_sums(is_right=measured.is_right)
                done = wire.Done(number=message.number, digest=digest, seconds=measured.seconds)
                self._loop.call_soon_threadsafe(self._send, done)

    def _compute(self, compute: Compute, message: wire.Round) -> None:
        step = compute.step(wire.commands_of(message))
        is_changed = message.inserts or message.removes or any(token.finish for token in step.tokens)
        if is_changed or message.number % KV_SAMPLE_ROUNDS == 0:
            gauges = compute.gauges
            self._kv_bytes, self._kept_bytes = gauges.kv_bytes, gauges.kept_bytes
        self._loop.call_soon_threadsafe(self._send, wire.Done(number=message.number, digest=wire.digest(step)))
