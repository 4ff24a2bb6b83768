"""I/O: the generation thread, the only one that touches MLX arrays."""

import asyncio
import itertools
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.worker.batch import Batch, Event, Job
from runtime.worker.compute import prefill_bounds
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.model import LoadedModel
from runtime.worker.prefill import Portions
from runtime.worker.settings import Settings
from runtime.worker.speculation import DraftError
from runtime.worker.steps import Gauges, GroupEndedError, Resting, Steps
from runtime.worker.threads import STOP_S, ModelThread, Progress
from schemas.messages import Phase

logger = logging.getLogger(__name__)

Loader = Callable[[Path, int | None, Callable[[float], None]], LoadedModel]
"""Loads a model directory with a bound on its context, telling the share that is loaded; see `model.load`."""

MakeSteps = Callable[[LoadedModel], Steps]
"""Makes what computes for a loaded model."""

KV_SAMPLE_ROUNDS = 64
"""Rounds between two measurements of the caches' size: they grow by a step of 256 tokens at a time."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory."""

    model: LoadedModel


@dataclass(frozen=True, slots=True)
class Rounds:
    """What one round gave, and what it left."""

    events: list[Event]
    tokens: int
    running: int
    gauges: Gauges


Report = Progress | Loaded | Rounds | None
"""None is the last one of a thread that ended by itself."""


@dataclass(frozen=True, slots=True)
class _Add:
    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class _Remove:
    job_ids: Sequence[int]


_Command = _Add | _Remove | None
"""None ends the thread."""


class GenerationThread:
    """Runs rounds while there is work and sleeps on its queue while there is none."""

    def __init__(
        self,
        settings: Settings,
        load: Loader,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[Report], None],
        make_steps: MakeSteps,
    ) -> None:
        """`receive` is called on `loop` with everything the thread has to say."""
        self._settings = settings
        self._load_model = load
        self._make_steps = make_steps
        self._loop = loop
        self._receive = receive
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = ModelThread(self._main)
        self._is_stopping = False
        self.failure: str | None = None
        """Why the thread ended by itself, before it reports so."""

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start loading the model."""
        self._thread.start()

    def add(self, jobs: Sequence[Job]) -> None:
        """Hand over the jobs of a request; safe from any thread, like `remove`."""
        self._commands.put(_Add(jobs))

    def remove(self, job_ids: Sequence[int]) -> None:
        """Take jobs out when the next round begins."""
        self._commands.put(_Remove(job_ids))

    async def stop(self) -> None:
        """End the thread after the round under way; give up on one that does not end."""
        self._is_stopping = True
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, STOP_S)
        if self._thread.is_alive():
            logger.warning("the generation thread did not end within %g s", STOP_S)

    def _main(self) -> None:
        try:
            model = self._load()
            self._serve(model)
        except GroupEndedError as error:
            logger.info("generation ends: %s", error)
            self._report(None)
        except (ModelFilesError, DraftError) as error:
            logger.critical("the model cannot be served: %s", error)
            self.failure = str(error)
            self._report(None)
        except BaseException as error:
            logger.critical("the generation thread died", exc_info=True)
            self.failure = f"{type(error).__name__}: {error}"
            self._report(None)

    def _load(self) -> LoadedModel:
        # A group's ranks join before they load: the others must expect rank 0's silence meanwhile.
        self._report(Progress("joining") if self._settings.group else Progress("loading", 0.0))
        last = -1.0

        def progress(share: float) -> None:
            nonlocal last
            if share - last >= 0.01:
                last = share
                self._report(Progress("loading", share))

        return self._load_model(Path(self._settings.model_dir), self._settings.max_context, progress)

    def _serve(self, model: LoadedModel) -> None:
        steps = self._make_steps(model)
        batch = Batch(model, self._settings.max_batch, steps, Portions(prefill_bounds()))
        self._report(Loaded(model))
        self._prove(batch, "warming")
        gauges = Gauges()
        for count in itertools.count():
            if not self._take_commands(batch):
                break
            outcome = batch.round()
            if outcome.has_moved or count % KV_SAMPLE_ROUNDS == 0:
                gauges = batch.gauges
            if outcome.events or outcome.has_moved:
                self._report(Rounds(outcome.events, outcome.tokens, batch.running, gauges))
            if outcome.has_failed:
                self._prove(batch, "recovering")
        batch.close()

    def _prove(self, batch: Batch, phase: Phase) -> None:
        """Be ready only after a real token; a model that gives none ends the thread."""
        self._report(Progress(phase))
        batch.warm_up()
        self._report(Rounds([], 0, batch.running, batch.gauges))
        self._report(Progress("ready"))

    def _take_commands(self, batch: Batch) -> bool:
        """Apply all commands that wait; rest where the batch has nothing to do. Return False to end."""
        while True:
            try:
                command = self._commands.get(block=not batch.is_busy, timeout=self._rest(batch))
            except queue.Empty:
                if batch.is_busy:
                    return True
                continue
            match command:
                case _Add():
                    for job in command.jobs:
                        batch.add(job)
                case _Remove():
                    for job_id in command.job_ids:
                        batch.remove(job_id)
                case None:
                    return False

    def _rest(self, batch: Batch) -> float | None:
        """Do what is due while nobody asks; return for how long to sleep, None for until somebody asks."""
        if batch.is_busy or not self._commands.empty() or not isinstance(batch.steps, Resting):
            return None
        return batch.steps.rest()

    def _report(self, report: Report) -> None:
        try:
            self._loop.call_soon_threadsafe(self._receive, report)
        except RuntimeError:
            # The loop is closed: the process ends and nobody listens any more.
            if not self._is_stopping:
                raise
