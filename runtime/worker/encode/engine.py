"""I/O: the event loop's side of embedding and reranking: admission, answers, and the thread that computes them.

Requests are read and answers written in a thread of their own: a large body must not hold up the loop. Rows of all
requests meet in the encoding thread, which batches them. Everything else in this module belongs to the loop.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from runtime.worker import status
from runtime.worker.described import Described, kind_abilities
from runtime.worker.encode.encoder import Encoder
from runtime.worker.encode.thread import Began, Computed, EncodeThread, Ended, Failed, Loaded, Report
from runtime.worker.encode.work import Reading, Vector, Work
from runtime.worker.errors import GenerationError
from runtime.worker.gate import BROKEN, STOPPED, Gate
from runtime.worker.settings import Settings
from runtime.worker.threads import Progress
from schemas.messages import WorkerMemory, WorkerQueue, WorkerReadiness, WorkerStatus

logger = logging.getLogger(__name__)

Prepare = Callable[[Reading], Work]
"""Reads a request with the loaded model; raises RequestError."""


class EncodeEngine:
    """Admits requests, hands their rows to the encoding thread and reports on both."""

    def __init__(self, settings: Settings, on_end: Callable[[], None]) -> None:
        """`on_end` is called on the loop when the encoding thread has ended by itself: nothing is computed any more."""
        self.gate = Gate(settings, lambda: self._under_way)
        self._settings = settings
        self._on_end = on_end
        self._encoder: Encoder | None = None
        self._answers: dict[int, asyncio.Future[list[Vector]]] = {}
        self._under_way = 0
        """Requests admitted and not answered."""
        self._batch = 0
        self._ids = itertools.count(1)
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
        encoder = self.gate.check(self._encoder)
        self._under_way += 1
        self.gate.note_places()
        began = time.monotonic()
        try:
            body = await self._answer(prepare, encoder)
            self.gate.meter.completed += 1
            self.gate.meter.add_end(time.monotonic() - began)
        except asyncio.CancelledError:
            self.gate.meter.cancelled += 1
            raise
        except GenerationError:
            self.gate.meter.failed += 1
            raise
        finally:
            self._under_way -= 1
            self.gate.note_places()
        return body

    async def _answer(self, prepare: Prepare, encoder: Encoder) -> bytes:
        loop = asyncio.get_running_loop()
        work = await loop.run_in_executor(self._reader, prepare, encoder.reading)
        self.gate.check_not_shut()
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
        encoder = self._encoder
        dimensions = encoder.dimensions if encoder and self._settings.kind == "embedding" else None
        return self.gate.readiness().model_copy(update={"dimensions": dimensions})

    def status(self) -> WorkerStatus:
        """Report everything there is to know about this worker."""
        tokens = self.gate.meter.tokens()
        return WorkerStatus(
            model=self._settings.name,
            phase=self.gate.phase,
            context_length=self._encoder.max_length if self._encoder else None,
            uptime_s=self.gate.uptime_s,
            queue=WorkerQueue(
                batch=self._batch,
                batch_limit=self._settings.max_batch,
                waiting=max(0, self._under_way - self._batch),
                waiting_limit=self._settings.max_waiting,
            ),
            memory=self._memory(),
            requests=self.gate.meter.requests(),
            # What this worker computes are the tokens of its clients' texts.
            tokens=tokens.model_copy(update={"prompt": tokens.generated, "generated": 0}),
            versions=status.versions(),
        )

    def describe(self) -> Described | None:
        """Return what is known of the model; None before it is loaded."""
        encoder, kind = self._encoder, self._settings.kind
        if encoder is None:
            return None
        return Described(encoder.max_length, kind_abilities(kind), encoder.dimensions if kind == "embedding" else None)

    async def drain(self) -> None:
        """Admit nobody any more, let the requests under way finish for `drain_s`, then end them and the thread."""
        await self.gate.drain()
        self._fail_all(STOPPED)
        await self._thread.stop()
        self._encoder = None
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _memory(self) -> WorkerMemory:
        return status.memory(self._encoder.size_bytes if self._encoder else 0, 0)

    def _receive(self, report: Report) -> None:
        """Take a report of the encoding thread; runs on the loop."""
        match report:
            case Progress():
                self.gate.follow(report)
            case Loaded():
                self._encoder = report.encoder
            case Began():
                self._batch = report.requests
            case Ended():
                self._batch = 0
                self.gate.meter.add_round(report.tokens, is_idle=report.is_idle)
                for event in report.events:
                    self._deliver(event)
            case None:
                self.gate.fail()
                self._fail_all(BROKEN)
                self._on_end()

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
        self.gate.shut()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GenerationError(message))
