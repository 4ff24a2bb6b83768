"""I/O: the event loop's side of generation: admission, answers, and the thread that computes them.

One thread owns the model and the batch. Commands reach it through a queue it sleeps on while there is nothing to do;
what a round gave comes back to the loop as one call, however many requests it served. Everything else in this module
belongs to the loop.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from runtime.worker import status
from runtime.worker.alone import computing_alone
from runtime.worker.answer import Answer
from runtime.worker.batch import Event, Failure, Removed
from runtime.worker.described import Described, chat_abilities
from runtime.worker.errors import RequestError
from runtime.worker.gate import BROKEN, STOPPED, Gate
from runtime.worker.generation import GenerationThread, Loaded, Loader, MakeSteps, Report, Rounds
from runtime.worker.jobs import jobs_of
from runtime.worker.model import LoadedModel, load
from runtime.worker.preparing import count, prepare
from runtime.worker.request import Request
from runtime.worker.settings import Settings
from runtime.worker.steps import Gauges
from runtime.worker.threads import Progress
from schemas.messages import Phase, WorkerGroup, WorkerMemory, WorkerQueue, WorkerReadiness, WorkerStatus
from schemas.verdict import Verdict

logger = logging.getLogger(__name__)


class Engine:
    """Admits requests, hands them to the generation thread and reports on both."""

    def __init__(
        self,
        settings: Settings,
        on_end: Callable[[], None],
        load: Loader = load,
        make_steps: MakeSteps | None = None,
        report_group: Callable[[], WorkerGroup | None] = lambda: None,
        refuse_group: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_end` is called on the loop when the generation thread has ended by itself: the process must end too.

        A process that leads a group loads and computes with `load` and `make_steps` of the group, and ends it with
        `refuse_group` when its canary has failed.
        """
        self.gate = Gate(settings, lambda: self._preparing + len(self._open))
        self._settings = settings
        self._on_end = on_end
        self._report_group = report_group
        self._refuse_group = refuse_group
        self._verdict: Verdict | None = None
        self._model: LoadedModel | None = None
        self._open: dict[int, Answer] = {}
        """Keyed by the ids of the jobs that have not ended: several of them may belong to one answer."""
        self._preparing = 0
        self._batch = 0
        self._gauges = Gauges()
        self._ids = itertools.count(1)
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        computes = computing_alone(settings) if make_steps is None else make_steps
        self._thread = GenerationThread(settings, load, asyncio.get_running_loop(), self._receive, computes)

    def start(self) -> None:
        """Load the model in the background."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Tell whether the generation thread lives."""
        return self._thread.is_alive

    @property
    def failure(self) -> str | None:
        """Return why the generation thread ended by itself; None while it did not."""
        return self._thread.failure

    @asynccontextmanager
    async def answering(self, parse: Callable[[], Request]) -> AsyncIterator[tuple[Request, Answer]]:
        """Admit one request and generate its answer while the block runs.

        `parse` runs, like the tokenizer, in a thread of its own: a large body must not hold up the others' streams.
        Leaving the block in any way, by cancellation too, frees the request's place within one round.

        Raises UnavailableError where there is no place, and what `parse` raises.
        """
        model = self.gate.check(self._model)
        self._preparing += 1
        self.gate.note_places()
        try:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._preparer, prepare, parse, model)
            request, tokens = prepared.request, prepared.tokens
            self.gate.check_not_shut()
            answer = self._admit(request, len(tokens))
            answer.new_reader, answer.new_thoughts = prepared.new_reader, prepared.new_thoughts
        except asyncio.CancelledError:
            self.gate.meter.cancelled += 1
            raise
        finally:
            self._preparing -= 1
            self.gate.note_places()
        try:
            self._thread.add(jobs_of(request, tokens, answer.ids, model.limits, prepared.constraint))
            self.gate.meter.prompt_tokens += len(tokens)
            yield request, answer
        finally:
            if not answer.is_over:
                self._thread.remove(sorted(answer.open))

    async def counted(self, parse: Callable[[], Request]) -> tuple[int, int]:
        """Return how many tokens the prompt of a request has, and how many the context holds.

        Like a request it waits its turn for the tokenizer, and raises UnavailableError where there is no place.
        """
        model = self.gate.check(self._model)
        self._preparing += 1
        self.gate.note_places()
        try:
            loop = asyncio.get_running_loop()
            tokens = await loop.run_in_executor(self._preparer, count, parse, model)
        finally:
            self._preparing -= 1
            self.gate.note_places()
        return tokens, model.limits.context_length

    def readiness(self) -> WorkerReadiness:
        """Report whether a real token was produced since the load."""
        return self.gate.readiness().model_copy(update={"canary": self._verdict})

    def judge(self, verdict: Verdict) -> None:
        """Keep the verdict on this group; one that failed its canary ends."""
        self._verdict = verdict
        logger.info("%s", verdict.line())
        if verdict.outcome == "failed":
            self._refuse_group(verdict.line())

    def status(self) -> WorkerStatus:
        """Report everything there is to know about this worker."""
        model = self._model
        return WorkerStatus(
            model=self._settings.name,
            phase=self.gate.phase,
            context_length=model.limits.context_length if model else None,
            uptime_s=self.gate.uptime_s,
            queue=WorkerQueue(
                batch=self._batch,
                batch_limit=self._settings.max_batch,
                waiting=self._waiting,
                waiting_limit=self._settings.max_waiting,
            ),
            memory=self._memory(),
            requests=self.gate.meter.requests(),
            tokens=self.gate.meter.tokens(),
            versions=status.versions(),
            speculation=status.speculation(self._settings, self._gauges),
            prompt_cache=status.prompt_cache(self._gauges),
            group=self._report_group(),
        )

    def describe(self) -> Described | None:
        """Return what is known of the model; None before it is loaded."""
        model = self._model
        if model is None:
            return None
        tokenizer = model.tokenizer
        can = chat_abilities(has_template=tokenizer.has_chat_template, has_thinking=tokenizer.has_thinking)
        return Described(model.limits.context_length, can)

    def pulse(self) -> tuple[Phase, float | None, WorkerMemory]:
        """Return the phase, the progress while it loads, and this process's memory."""
        return self.gate.phase, self.gate.progress, self._memory()

    def abort(self, message: str) -> None:
        """End every request at once with `message`, and admit nobody any more; nobody waits for the thread."""
        self.gate.fail()
        self._fail_all(message)

    async def drain(self) -> None:
        """Admit nobody any more, let the requests under way finish for `drain_s`, then end them and the thread."""
        await self.gate.drain()
        self._fail_all(STOPPED, is_stop=True)
        await self._thread.stop()
        self._preparer.shutdown(wait=False, cancel_futures=True)

    def _admit(self, request: Request, prompt_tokens: int) -> Answer:
        """Take places for every choice of a request; raises RequestError and UnavailableError."""
        places = self._settings.places
        if request.choices > places:
            raise RequestError(f"n is at most {places} for this worker.", param="n")
        self.gate.check_places(request.choices - 1)
        answer = Answer([next(self._ids) for _ in range(request.choices)], prompt_tokens)
        self._open |= dict.fromkeys(answer.ids, answer)
        return answer

    @property
    def _waiting(self) -> int:
        return self._preparing + max(0, len(self._open) - self._batch)

    def _memory(self) -> WorkerMemory:
        weights = self._model.size_bytes + self._gauges.draft_bytes if self._model else 0
        return status.memory(weights, self._gauges.kv_bytes, self._gauges.kept_bytes)

    def _receive(self, report: Report) -> None:
        """Take a report of the generation thread; runs on the loop."""
        match report:
            case Progress():
                self.gate.follow(report)
            case Loaded():
                self._model = report.model
            case Rounds():
                for event in report.events:
                    self._deliver(event)
                self._batch, self._gauges = report.running, report.gauges
                self.gate.meter.add_round(report.tokens, is_idle=report.running == 0)
                self.gate.note_places()
            case None:
                self.gate.fail()
                self._fail_all(BROKEN)
                self._on_end()

    def _deliver(self, event: Event) -> None:
        answer = self._open.get(event.id)
        if answer is None:
            return
        if isinstance(event, Removed):
            # The jobs of a request leave in one round: the first of them ends it.
            self._close(answer)
            self.gate.meter.cancelled += 1
            return
        answer.feed(event)
        if event.id not in answer.open:
            self._open.pop(event.id)
        if isinstance(event, Failure):
            others = [job_id for job_id in answer.ids if job_id in self._open]
            self._thread.remove(others)
            self._close(answer)
            self.gate.meter.failed += 1
        elif answer.is_over:
            self._close(answer)
            self.gate.meter.completed += 1

    def _close(self, answer: Answer) -> None:
        for job_id in answer.ids:
            self._open.pop(job_id, None)
        self.gate.meter.add_end(time.monotonic() - answer.began_at)

    def _fail_all(self, message: str, *, is_stop: bool = False) -> None:
        self.gate.shut()
        answers = {answer.ids[0]: answer for answer in self._open.values()}
        for first, answer in answers.items():
            answer.feed(Failure(first, message))
        if is_stop:
            self.gate.meter.cancelled += len(answers)
        else:
            self.gate.meter.failed += len(answers)
        self._open.clear()
        self.gate.note_places()
