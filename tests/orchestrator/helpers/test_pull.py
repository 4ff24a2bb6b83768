"""Pulling a model through a fake Ollama: progress, failures, standstill, cancellation."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.execute import EffectError, Progress
from orchestrator.helpers.pull import pull
from orchestrator.readiness import client
from schemas.stack import Helper
from tests.fakes import engines
from tests.fakes.engines import FakeEngine, FakeOllama, full_disk, good_pull, unknown_model
from tests.ports import free_port
from tests.runtime.gateway.harness import until


def declared(url, key=None):
    fields = {"url": url, "api": "ollama", "models": {"qwen3": {"ensure": "present"}}}
    return Helper.model_validate(fields | ({"key": key} if key else {}))


async def do_pull(url, report=None, *, key=None, stall_s=60.0):
    said: list[Progress] = []
    async with client() as http:
        await pull(http, "rtx", declared(url, key), "qwen3", report or said.append, {}, stall_s=stall_s)
    return said


async def test_progress_is_the_sum_of_all_layers():
    async with FakeOllama(steps=good_pull(1000, 4)) as fake:
        said = await do_pull(fake.url)
    assert fake.pulled == ["qwen3"]
    amounts = [(step.done, step.total) for step in said if step.phase == "pull"]
    assert amounts == [(0, 1000), (250, 1000), (500, 1000), (750, 1000), (1000, 1000), (1000, 1260), (1260, 1260)]
    assert said[-1].phase == "success"
    assert {step.unit for step in said} == {"bytes"}


async def test_what_was_pulled_is_there_afterwards():
    async with FakeOllama() as fake:
        await do_pull(fake.url)
        assert [row["name"] for row in fake.documents["/api/tags"]["models"]] == ["qwen3:latest"]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (full_disk(), "no space left on device; free some disk on that machine"),
        (unknown_model(), "the registry has no such model or tag"),
        ([{"status": "pulling manifest"}], "ended the pull of qwen3 without a word (pulling manifest)"),
        ([{"error": "dial tcp: lookup registry: i/o timeout"}], "cannot reach its model registry"),
        ([["no", "object"], {"error": "x"}], "qwen3 could not be pulled: x"),
    ],
)
async def test_a_failure_in_the_stream_is_told_with_the_mend(steps, words):
    async with FakeOllama(steps=steps) as fake:
        with pytest.raises(EffectError, match="qwen3") as failure:
            await do_pull(fake.url)
    assert words in str(failure.value)


async def test_a_pull_that_stands_still_is_given_up():
    layer = {"status": "pulling 5", "digest": engines.PULLED, "total": 100, "completed": 7}

    async def repeat(exchange):
        while True:  # Ollama repeats the same line while nothing comes
            await exchange.chunk(json.dumps(layer).encode() + b"\n")
            await asyncio.sleep(0.02)

    async with FakeOllama(steps=[repeat]) as fake:
        with pytest.raises(EffectError, match="no progress with qwen3 for 1 s"):
            await do_pull(fake.url, stall_s=1.0)
        await until(fake.seen[-1].was_cut.is_set, what="the pull was ended")


async def test_cancelling_ends_the_transfer():
    async def wait(exchange):
        await exchange.silence()

    async with FakeOllama(steps=[{"status": "pulling manifest"}, wait]) as fake:
        pulling = asyncio.create_task(do_pull(fake.url))
        await until(lambda: fake.pulled and fake.seen[-1].is_begun, what="the pull begins")
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await until(fake.seen[-1].was_cut.is_set, what="the pull was ended")


async def test_a_helper_that_goes_away_in_the_middle_is_told():
    async def vanish(exchange):
        exchange.reset()

    async with FakeOllama(steps=[{"status": "pulling manifest"}, vanish]) as fake:
        with pytest.raises(EffectError, match="stopped answering while it pulled qwen3"):
            await do_pull(fake.url)


async def test_a_helper_that_is_not_there_is_told():
    with pytest.raises(EffectError, match="refuses port"):
        await do_pull(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("documents", "key", "words"),
    [(engines.vllm("m"), None, "cannot pull models"), (engines.ollama(), "sesame", "set helpers.rtx.key")],
)
async def test_a_server_that_refuses_is_told(documents, key, words):
    async def refuse(exchange):
        await exchange.answer(404, b"not found")

    async with FakeEngine(documents, key=key) as fake:
        fake.chat = refuse
        with pytest.raises(EffectError, match=words):
            await do_pull(fake.url)


async def test_the_key_is_sent():
    async with FakeOllama() as fake:
        fake.key = "sesame"
        await do_pull(fake.url, key="sesame")
    assert fake.pulled == ["qwen3"]
