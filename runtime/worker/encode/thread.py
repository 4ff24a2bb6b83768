"""I/O: the thread that owns an embedding or reranking model: it loads it, proves it and computes batches of rows."""

import asyncio
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np

from runtime.worker.encode.encoder import Encoder, load
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.queue import Pick, RowQueue
from runtime.worker.encode.rows import Row
from runtime.worker.encode.work import Vector
from runtime.worker.settings import Settings
from runtime.worker.threads import STOP_S, ModelThread, Progress
from schemas.messages import Phase

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16384
"""Tokens computed at once. A batch cannot be interrupted: on a CPU a larger one only delays the others' turn."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory."""

    encoder: Encoder


@dataclass(frozen=True, slots=True)
class Began:
    """A batch is being computed for so many requests."""

    requests: int


@dataclass(frozen=True, slots=True)
class Computed:
    """All rows of a job, in their order."""

    job_id: int
    vectors: list[Vector]


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that ended without an answer."""

    job_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch is over: what it completed, and the tokens that it computed."""

    events: list[Computed | Failed]
    tokens: int
    is_idle: bool


Report = Progress | Loaded | Began | Ended | None
"""None is the last one of a thread that ended by itself."""


@dataclass(frozen=True, slots=True)
class _Add:
    job_id: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class _Remove:
    job_id: int


_Command = _Add | _Remove | None
"""None ends the thread."""


@dataclass(slots=True)
class _Job:
    rows: Sequence[Row]
    vectors: dict[int, Vector] = field(default_factory=dict)
    """What was computed, by the index of the row."""


class EncodeThread:
    """Computes batches while rows wait and sleeps on its queue while none does."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop, receive: Callable[[Report], None]) -> None:
        """`receive` is called on `loop` with everything the thread has to say."""
        self._settings = settings
        self._loop = loop
        self._receive = receive
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = ModelThread(self._main)
        self._is_stopping = False
        self._jobs: dict[int, _Job] = {}
        self.failure: str | None = None
        """Why the thread ended by itself, before it reports so."""

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start loading the model."""
        self._thread.start()

    def add(self, job_id: int, rows: Sequence[Row]) -> None:
        """Hand over the rows of a request; safe from any thread, like `remove`."""
        self._commands.put(_Add(job_id, rows))

    def remove(self, job_id: int) -> None:
        """Take a request out after the batch under way; one that is over is no mistake."""
        self._commands.put(_Remove(job_id))

    async def stop(self) -> None:
        """End the thread after the batch under way; give up on one that does not end."""
        self._is_stopping = True
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, STOP_S)
        if self._thread.is_alive():
            logger.warning("the encoding thread did not end within %g s", STOP_S)

    def _main(self) -> None:
        try:
            self._serve(self._load())
        except ModelFilesError as error:
            logger.critical("the model cannot be served: %s", error)
            self.failure = str(error)
            self._report(None)
        except BaseException as error:
            logger.critical("the encoding thread died", exc_info=True)
            self.failure = f"{type(error).__name__}: {error}"
            self._report(None)
        finally:
            self._jobs.clear()
            mx.clear_cache()

    def _load(self) -> Encoder:
        self._report(Progress("loading", 0.0))
        last = -1.0

        def progress(share: float) -> None:
            nonlocal last
            if share - last >= 0.01:
                last = share
                self._report(Progress("loading", share))

        settings = self._settings
        return load(Path(settings.model_dir), settings.kind, settings.max_context, progress)

    def _serve(self, encoder: Encoder) -> None:
        is_on_cpu = mx.default_device().type == mx.DeviceType.cpu
        waiting = RowQueue(self._settings.max_batch, CPU_BATCH_TOKENS if is_on_cpu else GPU_BATCH_TOKENS)
        self._report(Loaded(encoder))
        self._prove(encoder, "warming")
        while self._take_commands(waiting):
            picks = waiting.pop()
            self._report(Began(len({pick.job_id for pick in picks})))
            events, tokens = self._compute(encoder, picks)
            for event in events:
                waiting.remove(event.job_id)
                self._jobs.pop(event.job_id, None)
            self._report(Ended(events, tokens, is_idle=not waiting))
            if not tokens:
                self._prove(encoder, "recovering")

    def _prove(self, encoder: Encoder, phase: Phase) -> None:
        """Be ready only after a real vector or score; a model that gives none ends the thread."""
        self._report(Progress(phase))
        (vector,) = encoder.compute([encoder.probe()])
        if not np.isfinite(vector).all():
            raise ModelFilesError("the model computes no finite numbers: its weights are damaged")
        self._report(Progress("ready"))

    def _compute(self, encoder: Encoder, picks: list[Pick]) -> tuple[list[Computed | Failed], int]:
        """Compute one batch; return what it completed and its tokens, 0 where it failed."""
        rows = [self._jobs[pick.job_id].rows[pick.index] for pick in picks]
        ids = list(dict.fromkeys(pick.job_id for pick in picks))
        try:
            vectors = encoder.compute(rows)
        except Exception:
            logger.exception("a batch failed: ending its %d requests", len(ids))
            return [Failed(job_id, "The model failed while it computed.") for job_id in ids], 0
        broken = set()
        for pick, vector in zip(picks, vectors, strict=True):
            self._jobs[pick.job_id].vectors[pick.index] = vector
            if not np.isfinite(vector).all():
                broken.add(pick.job_id)
        events: list[Computed | Failed] = []
        for job_id in ids:
            job = self._jobs[job_id]
            if job_id in broken:
                events.append(Failed(job_id, "The model computed something that is no finite number."))
            elif len(job.vectors) == len(job.rows):
                events.append(Computed(job_id, [job.vectors[index] for index in range(len(job.rows))]))
        return events, sum(len(row.tokens) for row in rows)

    def _take_commands(self, waiting: RowQueue) -> bool:
        """Apply all commands; sleep while no row waits. Return False to end."""
        while True:
            try:
                command = self._commands.get(block=not waiting)
            except queue.Empty:
                return True
            match command:
                case _Add():
                    self._jobs[command.job_id] = _Job(command.rows)
                    waiting.add(command.job_id, [len(row.tokens) for row in command.rows])
                case _Remove():
                    waiting.remove(command.job_id)
                    self._jobs.pop(command.job_id, None)
                case None:
                    return False

    def _report(self, report: Report) -> None:
        try:
            self._loop.call_soon_threadsafe(self._receive, report)
        except RuntimeError:
            # The loop is closed: the process ends and nobody listens any more.
            if not self._is_stopping:
                raise
