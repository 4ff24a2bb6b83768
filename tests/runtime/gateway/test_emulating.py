"""Answers that are asked for twice, where the time of the request is over in between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from runtime.gateway.adapters.emulation.forms import value_of
from runtime.gateway.adapters.emulation.gathering import Gathering
from runtime.gateway.attempt import Ask, AttemptError, Course, Result
from runtime.gateway.bodies import parse_chat
from runtime.gateway.emulating import emulated
from runtime.gateway.observe.metrics import Gauges, Metrics
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import OUT_OF_TIME, SUCCESS, UNFIT, judge_fault
from runtime.gateway.routing.pool import Pool
from schemas.stack import Stack
from tests.runtime.gateway.harness import CHAT, stack_document

METRICS = Metrics(lambda: Gauges(is_current=True, problems=0, generation=1, endpoints=()))


class NoStream:
    """The client of an answer that is not streamed."""

    is_started = False

    async def start(self, _: str, __: int, ___: str) -> None:
        raise AssertionError("nothing is streamed")

    async def send(self, _: bytes) -> None:
        raise AssertionError("nothing is streamed")


def said(text: str) -> Result:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Result(SUCCESS, body=json.dumps({"id": "1", "choices": [choice]}).encode())


async def made_of(*ends: Result | Exception, late_after: int) -> tuple[Result | AttemptError, int]:
    """Return what comes of these answers, and how many were asked for; the time is over after one of them."""
    stack = Stack.model_validate_json(json.dumps(stack_document({"a": "http://h1:1"})))
    table = build_table(stack, None, environ={}, worker_token=None)
    pool = Pool(asyncio.get_running_loop().time, lambda: 0.0)
    pool.adopt(table)
    lease = pool.lease(table.routes["chat"], ())
    assert isinstance(lease, Lease)
    one = Ask(table.routes["chat"], "/v1/chat/completions", parse_chat(json.dumps(CHAT).encode()), "req-1")
    gathering = Gathering((one,), lambda ask: ask, form=value_of({"type": "object", "required": ["a"]}))
    asked = 0

    async def send(_: Ask, shared: Course) -> Result:
        nonlocal asked
        asked += 1
        if asked == late_after:
            shared.deadline = asyncio.get_running_loop().time() - 1.0
        end = ends[asked - 1]
        if isinstance(end, Exception):
            raise end
        return end

    now = asyncio.get_running_loop().time()
    try:
        found: Any = await emulated(send, gathering, one, lease, Course(now, 600.0), NoStream(), METRICS, now)
    except AttemptError as error:
        found = error
    finally:
        lease.release()
    return found, asked


FAILED = AttemptError(judge_fault("no first content", is_committed=False), "too late")


async def test_nobody_is_asked_again_when_no_time_is_left() -> None:
    found, asked = await made_of(said("words"), late_after=1)
    assert isinstance(found, AttemptError) and found.verdict is UNFIT and asked == 1
    assert b"no time to ask again" in found.body


async def test_a_late_answer_is_taken_where_it_has_the_form() -> None:
    found, asked = await made_of(said('{"a": 1}'), late_after=1)
    assert isinstance(found, Result) and found.verdict is SUCCESS and asked == 1


async def test_an_endpoint_that_has_answered_once_is_not_blamed_for_the_end_of_the_time() -> None:
    found, asked = await made_of(said("words"), FAILED, late_after=2)
    assert isinstance(found, AttemptError) and found.verdict is OUT_OF_TIME and asked == 2


@pytest.mark.parametrize("late_after", [1, 3])
async def test_an_endpoint_that_fails_is_blamed_all_the_same(late_after: int) -> None:
    ends = (FAILED,) if late_after == 1 else (said("words"), FAILED)
    found, _ = await made_of(*ends, late_after=late_after)
    assert isinstance(found, AttemptError) and found.verdict.effect == "failure"
