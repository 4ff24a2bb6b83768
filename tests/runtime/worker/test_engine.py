"""What goes wrong inside generation ends no more than it must."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.worker.batch import Batch, Delta, Entered, Failure, Job, Removed
from runtime.worker.compute import Compute
from runtime.worker.engine import Engine
from runtime.worker.errors import GenerationError, UnavailableError
from runtime.worker.model import LoadedModel, load
from runtime.worker.request import Request, Sampling, TextPrompt
from runtime.worker.sampling import Chooser
from runtime.worker.settings import Settings
from tests.runtime.worker.tiny import write_model

DEADLINE_S = 180.0


class Flaky:
    """A model whose calls fail while `is_broken` says so."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.is_broken: Callable[[], bool] = lambda: False

    def __call__(self, *arguments: Any, **options: Any) -> mx.array:
        if self.is_broken():
            raise RuntimeError("out of memory")
        return self.module(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def once() -> Callable[[], bool]:
    """Return a function that is true at its first call."""
    answers = iter([True])
    return lambda: next(answers, False)


def request(max_tokens: int = 5) -> Request:
    sampling = Sampling(temperature=0)
    return Request(TextPrompt("the quick fox"), sampling, (), max_tokens, is_stream=False, include_usage=False)


async def text_of(engine: Engine, wanted: Request | Callable[[], Request]) -> str:
    parse = wanted if callable(wanted) else lambda: wanted
    async with engine.answering(parse) as (_, answer):
        text = ""
        while True:
            (piece,) = await answer.read()
            text += piece.text
            if piece.finish is not None:
                return text


class Harness:
    """An engine in this process, its flaky model, and whether it asked the process to end."""

    def __init__(self, model_dir: Path, **settings: Any) -> None:
        self.model: Flaky | None = None
        self.ended = asyncio.Event()
        wanted = Settings(str(model_dir), "tiny", "127.0.0.1", 0, None, drain_s=0, **settings)
        self.engine = Engine(wanted, self.ended.set, self._load)

    def _load(self, directory: Path, max_context: int | None, progress: Callable[[float], None]) -> LoadedModel:
        loaded = load(directory, max_context, progress)
        self.model = Flaky(loaded.module)
        return replace(loaded, module=self.model)

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not claim():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(model_dir: Path, **settings: Any) -> AsyncIterator[Harness]:
    harness = Harness(model_dir, **settings)
    harness.engine.start()
    await harness.until(lambda: harness.engine.gate.phase == "ready")
    try:
        yield harness
    finally:
        await harness.engine.drain()


async def test_a_failed_round_ends_its_requests_and_the_next_one_is_answered(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        expected = await text_of(harness.engine, request())
        harness.model.is_broken = once()
        with pytest.raises(GenerationError):
            await text_of(harness.engine, request())
        assert await text_of(harness.engine, request()) == expected
        await harness.until(lambda: harness.engine.gate.phase == "ready")
        assert harness.engine.status().requests.failed == 1
        assert not harness.ended.is_set()


async def test_an_answer_tells_whether_a_stop_string_ended_it(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        text = await text_of(harness.engine, request())
        for stop, is_cut in ((text[1:3], True), ("never written", False)):
            async with harness.engine.answering(lambda stop=stop: replace(request(), stop=(stop,))) as (_, answer):
                pieces = await answer.read()
                while pieces[-1].finish is None:
                    pieces += await answer.read()
            assert pieces[-1].stop == (stop if is_cut else None)
            assert not pieces[-1].is_complete


async def test_what_is_counted_of_a_request_is_told_when_its_client_has_the_answer(tiny_model_dir: Path) -> None:
    """One token: nobody is in the batch before the round and after it."""
    async with running(tiny_model_dir, prompt_cache_bytes=1 << 26) as harness:
        for count in range(3):
            await text_of(harness.engine, request(max_tokens=1))
            kept = harness.engine.status().prompt_cache
            assert kept is not None
            assert (kept.lookups, kept.hits, kept.entries) == (count + 1, count, 1)


async def test_what_a_stop_string_has_ended_holds_no_memory_in_the_report_of_an_idle_worker(
    tiny_model_dir: Path,
) -> None:
    """The computation lets go of it one round later, in which nothing else happens."""
    async with running(tiny_model_dir, prompt_cache_bytes=1 << 26) as harness:
        text = await text_of(harness.engine, request())
        await text_of(harness.engine, replace(request(), stop=(text[1:3],)))
        await harness.until(lambda: harness.engine.status().memory.kv_bytes == 0)


async def test_waiting_requests_survive_a_failed_round(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir, max_batch=1) as harness:
        expected = await text_of(harness.engine, request())
        first = asyncio.create_task(text_of(harness.engine, request(max_tokens=20_000)))
        await harness.until(lambda: harness.engine.status().queue.batch == 1)
        second = asyncio.create_task(text_of(harness.engine, request()))
        await harness.until(lambda: harness.engine.status().queue.waiting == 1)
        harness.model.is_broken = once()
        with pytest.raises(GenerationError):
            await first
        assert await second == expected


async def test_a_model_that_stays_broken_ends_the_thread_and_asks_the_process_to_end(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        harness.model.is_broken = lambda: True
        with pytest.raises(GenerationError):
            await text_of(harness.engine, request())
        async with asyncio.timeout(DEADLINE_S):
            await harness.ended.wait()
        await harness.until(lambda: not harness.engine.is_alive)
        assert not harness.engine.readiness().is_ready
        with pytest.raises(UnavailableError):
            await text_of(harness.engine, request())


async def test_a_draft_of_another_vocabulary_ends_the_worker_with_a_line_that_says_so(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draft = write_model(tmp_path / "draft", layers=1)
    tokenizer = json.loads((draft / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer))
    harness = Harness(tiny_model_dir, draft_dir=str(draft))
    harness.engine.start()
    await harness.until(harness.ended.is_set)
    (told,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert told.exc_info is None
    assert told.getMessage().startswith("the model cannot be served: the draft model has another vocabulary: its token")
    await harness.engine.drain()


async def test_requests_that_an_abort_ends_have_failed_and_keep_their_text(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        async with harness.engine.answering(lambda: request(max_tokens=20_000)) as (_, answer):
            await harness.until(lambda: answer.generated_tokens > 3)
            harness.engine.abort("rank 1 was lost")
            (piece,) = await answer.read()
            assert piece.text
            with pytest.raises(GenerationError, match="rank 1 was lost"):
                await answer.read()
        counted = harness.engine.status().requests
        assert (counted.failed, counted.cancelled) == (1, 0)


async def test_a_request_that_is_still_being_read_when_the_worker_ends_is_refused(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        may_go = threading.Event()

        def parse() -> Request:
            assert may_go.wait(DEADLINE_S)
            return request()

        async def ask() -> None:
            async with harness.engine.answering(parse) as (_, answer):
                await answer.read()

        asked = asyncio.create_task(ask())
        await harness.until(lambda: harness.engine.status().queue.waiting == 1)
        await harness.engine.drain()
        may_go.set()
        with pytest.raises(UnavailableError):
            await asked


async def test_a_client_that_leaves_while_its_request_is_read_is_counted(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        may_go = threading.Event()

        def parse() -> Request:
            assert may_go.wait(DEADLINE_S)
            return request()

        asked = asyncio.create_task(text_of(harness.engine, parse))
        await harness.until(lambda: harness.engine.status().queue.waiting == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        may_go.set()
        counted = harness.engine.status()
        assert (counted.requests.cancelled, counted.queue.waiting) == (1, 0)


async def test_requests_are_refused_until_a_token_was_produced(tiny_model_dir: Path) -> None:
    harness = Harness(tiny_model_dir)
    with pytest.raises(UnavailableError) as caught:
        await text_of(harness.engine, request())
    assert caught.value.code == "model_loading"
    harness.engine.start()
    phases = set()
    await harness.until(lambda: phases.add(harness.engine.gate.phase) or harness.engine.readiness().is_ready)
    assert harness.engine.status().requests.refused == 1
    await harness.engine.drain()


async def test_a_request_that_is_cancelled_while_it_waits_leaves_the_queue(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir, max_batch=1) as harness:
        first = asyncio.create_task(text_of(harness.engine, request(max_tokens=20_000)))
        await harness.until(lambda: harness.engine.status().queue.batch == 1)
        second = asyncio.create_task(text_of(harness.engine, request()))
        await harness.until(lambda: harness.engine.status().queue.waiting == 1)
        second.cancel()
        await harness.until(lambda: harness.engine.status().queue.waiting == 0)
        assert harness.engine.status().queue.batch == 1
        first.cancel()
        await harness.until(lambda: harness.engine.status().requests.cancelled == 2)
        assert harness.engine.status().queue.batch == 0


async def test_the_end_of_every_request_tells_how_long_the_next_has_to_wait(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        meter = harness.engine.gate.meter
        assert meter.wait_s(1) == 0
        await text_of(harness.engine, request())
        completed = meter.wait_s(1)
        assert completed > 0
        leaving = asyncio.create_task(text_of(harness.engine, request(max_tokens=20_000)))
        await harness.until(lambda: harness.engine.status().queue.batch == 1)
        leaving.cancel()
        await harness.until(lambda: harness.engine.status().queue.batch == 0)
        assert meter.wait_s(1) != completed


async def test_a_slow_reader_costs_text_and_no_place(tiny_model_dir: Path) -> None:
    async with running(tiny_model_dir) as harness:
        async with harness.engine.answering(lambda: request(max_tokens=200)) as (_, answer):
            await harness.until(lambda: harness.engine.status().queue.batch == 0 and answer.is_over)
            (piece,) = await answer.read()
        assert piece.finish == "length"
        assert piece.text == await text_of(harness.engine, request(max_tokens=200))


def rounds(batch: Batch) -> list[Delta | Failure]:
    """Run the batch dry; return the last event of each job."""
    last = {}
    while batch.is_busy:
        for event in batch.round().events:
            if not isinstance(event, Entered):
                last[event.id] = event
    return [last[job_id] for job_id in sorted(last)]


@pytest.mark.parametrize("part", ["sampler", "processor"])
def test_a_sampler_that_raises_ends_its_own_request_only(tiny_model_dir: Path, part: str) -> None:
    def fail(*_: mx.array) -> mx.array:
        raise ValueError("no token")

    def chooser(sampling: Sampling, *_: int) -> Chooser:
        if sampling.seed is None:
            return Chooser(None, [])
        return Chooser(fail, []) if part == "sampler" else Chooser(None, [fail])

    model = load(tiny_model_dir, None, lambda _: None)
    batch = Batch(model, 4, Compute(model, chooser))
    for job_id, seed in enumerate([None, 1, None]):
        batch.add(Job(job_id, [1, 2, 3], 6, Sampling(temperature=0, seed=seed), ()))
    first, second, third = rounds(batch)
    assert isinstance(first, Delta)
    assert isinstance(second, Failure)
    assert isinstance(third, Delta)
    assert (first.finish, third.finish) == ("length", "length")
    batch.close()


class BrokenDetokenizer:
    def push(self, token: int) -> str:
        raise ValueError("no text")

    def flush(self) -> str:
        return ""


def test_a_detokenizer_that_raises_ends_its_own_request_only(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir, None, lambda _: None)
    made = iter([model.new_detokenizer(), BrokenDetokenizer(), model.new_detokenizer()])
    batch = Batch(replace(model, new_detokenizer=lambda: next(made)), 4, Compute(model))
    for job_id in range(3):
        batch.add(Job(job_id, [1, 2, 3], 6, Sampling(temperature=0), ()))
    assert [type(event) for event in rounds(batch)] == [Delta, Failure, Delta]
    batch.close()


def test_a_failed_round_tells_every_job_how_it_ended(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir, None, lambda _: None)
    flaky = Flaky(model.module)
    batch = Batch(model, 2, Compute(replace(model, module=flaky)))
    for job_id in range(5):
        batch.add(Job(job_id, [1, 2, 3], 6, Sampling(temperature=0), ()))
    batch.round()
    batch.remove(0)
    batch.remove(4)
    flaky.is_broken = once()
    assert [type(event) for event in rounds(batch)] == [Removed, Failure, Failure, Delta, Removed]
    batch.close()
