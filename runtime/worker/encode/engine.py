"""I/O: the event loop's side of embedding and reranking: admission, answers, and the thread that computes them.

Requests are read and answers written in a thread of their own: a large body must not hold up the loop. Rows of all
requests meet in the encoding thread, which batches them. Everything else in this module belongs to the loop.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from runtime.worker import status
from runtime.worker.encode.encoder import Encoder
from runtime.worker.encode.thread import Began, Computed, EncodeThread, Ended, Failed, Loaded, Report
from runtime.worker.encode.work import Reading, Vector, Work
from runtime.worker.errors import GenerationError, UnavailableError
from runtime.worker.settings import Settings
from runtime.worker.threads import Progress
from schemas.messages import Phase, WorkerMemory, WorkerQueue, WorkerReadiness, WorkerStatus

logger = logging.getLogger(__name__)

Prepare = Callable[[Reading], Work]
"""Reads a request with the loaded model; raises RequestError."""


class EncodeEngine:
    """Admits requests, hands their rows to the encoding thread and reports on both."""

    def __init__(self, settings: Settings, on_end: Callable[[], None]) -> None:
        """`on_end` is called on the loop when the encoding thread has ended by itself: nothing is computed any more."""
        self.phase: Phase = "starting"
        self.meter = status.Meter()
        self._settings = settings
        self._started = time.monotonic()
        self._on_end = on_end
        self._progress: float | None = None
        self._load_s: float | None = None
        self._encoder: Encoder | None = None
        self._answers: dict[int, asyncio.Future[list[Vector]]] = {}
        self._under_way = 0
        """Requests admitted and not answered."""
        self._batch = 0
        self._has_ended = False
        """No answer will come any more."""
        self._ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._thread = EncodeThread(settings, asyncio.get_running_loop(), self._receive)

    @property
    def is_alive(self) -> bool:
        """Tell whether the encoding thread lives."""
        return self._thread.is_alive

    @property
    def failure(self) -> str | None:
        """Return why the encoding thread ended by itself; None while it did not."""
        return self._thread.failure

    def start(self) -> None:
        """Load the model in the background."""
        self._thread.start()

    async def answer(self, prepare: Prepare) -> bytes:
        """Compute one request and return the body of its answer; a cancelled call gives its place up.

        Raises UnavailableError where there is no place, GenerationError, and what `prepare` raises.
        """
        encoder = self._check_open()
        self._under_way += 1
        self._idle.clear()
        began = time.monotonic()
        try:
            body = await self._answer(prepare, encoder)
            self.meter.completed += 1
            self.meter.add_end(time.monotonic() - began)
        except asyncio.CancelledError:
            self.meter.cancelled += 1
            raise
        except GenerationError:
            self.meter.failed += 1
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return body

    async def _answer(self, prepare: Prepare, encoder: Encoder) -> bytes:
        loop = asyncio.get_running_loop()
        work = await loop.run_in_executor(self._reader, prepare, encoder.reading)
        if self._has_ended:
            raise self._refused("The worker ended while it read the request.", "shutting_down", 5)
        job_id = next(self._ids)
        answer = self._answers[job_id] = loop.create_future()
        try:
            self._thread.add(job_id, work.rows)
            vectors = await answer
        except asyncio.CancelledError:
            self._thread.remove(job_id)
            raise
        finally:
            self._answers.pop(job_id, None)
        return await loop.run_in_executor(self._reader, work.finish, vectors)

    def readiness(self) -> WorkerReadiness:
        """Report whether a real vector or score was computed since the load."""
        return WorkerReadiness(
            model=self._settings.name,
            is_ready=self.phase == "ready",
            phase=self.phase,
            progress=self._progress,
            load_s=self._load_s,
            kind=self._settings.kind,
            dimensions=self._encoder.dimensions if self._encoder and self._settings.kind == "embedding" else None,
        )

    def status(self) -> WorkerStatus:
        """Report everything there is to know about this worker."""
        tokens = self.meter.tokens()
        return WorkerStatus(
            model=self._settings.name,
            phase=self.phase,
            context_length=self._encoder.max_length if self._encoder else None,
            uptime_s=round(time.monotonic() - self._started, 3),
            queue=WorkerQueue(
                batch=self._batch,
                batch_limit=self._settings.max_batch,
                waiting=max(0, self._under_way - self._batch),
                waiting_limit=self._settings.max_waiting,
            ),
            memory=self._memory(),
            requests=self.meter.requests(),
            # What this worker computes are the tokens of its clients' texts.
            tokens=tokens.model_copy(update={"prompt": tokens.generated, "generated": 0}),
            versions=status.versions(),
        )

    async def drain(self) -> None:
        """Admit nobody any more, let the requests under way finish for `drain_s`, then end them and the thread."""
        self.phase = "draining"
        logger.info("draining: %d requests under way", self._under_way)
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("drain ended with %d requests unfinished", self._under_way)
        self._fail_all("The worker was stopped before the answer was complete.")
        await self._thread.stop()
        self._encoder = None
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _memory(self) -> WorkerMemory:
        return status.memory(self._encoder.size_bytes if self._encoder else 0, 0)

    def _check_open(self) -> Encoder:
        """Return the model where a request may enter.

        Raises UnavailableError.
        """
        if self.phase == "draining":
            raise self._refused("The worker is shutting down.", "shutting_down", 5)
        if self.phase == "failed":
            raise self._refused("The model stopped working; the worker restarts.", "model_failed", 5)
        if self._encoder is None or self.phase in {"starting", "loading", "warming"}:
            done = "" if self._progress is None else f" ({self._progress:.0%})"
            raise self._refused(f"The model is {self.phase}{done}.", "model_loading", 5)
        places = self._settings.max_batch + self._settings.max_waiting
        if self._under_way >= places:
            wait_s = max(1, min(60, math.ceil(self.meter.wait_s(places))))
            raise self._refused("The queue is full.", "queue_full", wait_s)
        return self._encoder

    def _refused(self, message: str, code: str, retry_after_s: int) -> UnavailableError:
        self.meter.refused += 1
        return UnavailableError(message, code=code, retry_after_s=retry_after_s)

    def _receive(self, report: Report) -> None:
        """Take a report of the encoding thread; runs on the loop."""
        match report:
            case Progress():
                self._enter(report.phase)
                self._progress = report.share
            case Loaded():
                self._encoder = report.encoder
            case Began():
                self._batch = report.requests
            case Ended():
                self._batch = 0
                self.meter.add_round(report.tokens, is_idle=report.is_idle)
                for event in report.events:
                    self._deliver(event)
            case None:
                self.phase = "failed"
                self._fail_all("The model stopped working; the worker restarts.")
                self._on_end()

    def _enter(self, phase: Phase) -> None:
        # Reports that were under way when the end began do not undo it.
        if self.phase not in {phase, "draining", "failed"}:
            logger.info("%s: %s", phase, self._settings.name)
            self.phase = phase
        if phase == "ready" and self._load_s is None:
            self._load_s = round(time.monotonic() - self._started, 3)

    def _deliver(self, event: Computed | Failed) -> None:
        answer = self._answers.get(event.job_id)
        if answer is None or answer.done():
            return
        match event:
            case Computed():
                answer.set_result(event.vectors)
            case Failed():
                answer.set_exception(GenerationError(event.message))

    def _fail_all(self, message: str) -> None:
        self._has_ended = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GenerationError(message))
