"""Who may enter an engine, and what those hear who may not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.worker import refusals
from runtime.worker.errors import UnavailableError
from runtime.worker.gate import Gate
from runtime.worker.settings import Settings
from runtime.worker.threads import Progress

MODEL = "the model"


class Engine:
    """A gate, and as many places in use as the test says."""

    def __init__(self, **settings: Any) -> None:
        self.taken = 0
        self.gate = Gate(Settings("", "m", "127.0.0.1", 0, None, **settings), lambda: self.taken)

    def take(self, count: int) -> None:
        self.taken = count
        self.gate.note_places()

    def refusal(self, model: str | None = MODEL) -> UnavailableError:
        with pytest.raises(UnavailableError) as caught:
            self.gate.check(model)
        return caught.value


async def test_nobody_enters_before_the_model_has_proved_itself() -> None:
    engine = Engine()
    assert engine.refusal(None).code == "model_loading"
    engine.gate.follow(Progress("loading", 0.5))
    assert "loading (50%)" in engine.refusal(None).message
    engine.gate.follow(Progress("warming"))
    assert "warming." in engine.refusal().message
    engine.gate.follow(Progress("ready"))
    assert engine.gate.check(MODEL) == MODEL
    engine.gate.follow(Progress("recovering"))
    assert engine.gate.check(MODEL) == MODEL
    assert engine.gate.meter.refused == 3


async def test_as_many_enter_as_there_are_places() -> None:
    engine = Engine(max_batch=2, max_waiting=1)
    engine.gate.follow(Progress("ready"))
    engine.take(2)
    engine.gate.check(MODEL)
    with pytest.raises(UnavailableError):
        engine.gate.check_places(2)
    engine.take(3)
    assert engine.refusal().code == "queue_full"
    assert engine.gate.meter.refused == 2


async def test_how_long_a_load_took_is_told_of_the_first_proof_only() -> None:
    engine = Engine()
    assert engine.gate.readiness().load_s is None
    engine.gate.follow(Progress("ready"))
    first = engine.gate.readiness().load_s
    assert first is not None
    await asyncio.sleep(0.01)
    engine.gate.follow(Progress("recovering"))
    assert not engine.gate.readiness().is_ready
    engine.gate.follow(Progress("ready"))
    assert engine.gate.readiness().load_s == first


@pytest.mark.parametrize("code", ["shutting_down", "model_failed"])
async def test_what_was_under_way_when_the_end_began_does_not_undo_it(code: str) -> None:
    engine = Engine()
    engine.gate.follow(Progress("ready"))
    if code == "model_failed":
        engine.gate.fail()
    else:
        await engine.gate.drain()
    engine.gate.follow(Progress("ready"))
    assert engine.refusal().code == code


async def test_the_end_waits_for_who_is_inside_and_no_longer_than_it_may() -> None:
    engine = Engine(drain_s=60.0)
    engine.take(1)
    ending = asyncio.create_task(engine.gate.drain())
    await asyncio.sleep(0)
    assert not ending.done()
    engine.take(0)
    await ending

    hurried = Engine(drain_s=0.0)
    hurried.take(1)
    await hurried.gate.drain()


async def test_a_request_that_the_end_overtook_is_refused() -> None:
    engine = Engine()
    engine.gate.check_not_shut()
    engine.gate.shut()
    with pytest.raises(UnavailableError) as caught:
        engine.gate.check_not_shut()
    assert caught.value.code == "shutting_down"


@pytest.mark.parametrize(("estimate_s", "told_s"), [(0.0, 1), (0.2, 1), (1.2, 2), (59.5, 60), (1e9, 60)])
def test_clients_are_told_whole_seconds_up_to_a_minute(estimate_s: float, told_s: int) -> None:
    assert refusals.retry_after_s(estimate_s) == told_s
