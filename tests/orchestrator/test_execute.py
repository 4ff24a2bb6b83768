"""The executor: order, failure, cancellation; over recording effects that change a simulated world."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.execute import (
    ActionDone,
    ActionFailed,
    ActionProgress,
    ActionSkipped,
    ActionStarted,
    EffectError,
    Event,
    Progress,
    execute,
)
from orchestrator.expand import Desired
from orchestrator.observed import Observed
from orchestrator.plan import Action, Plan
from orchestrator.reconcile import reconcile
from orchestrator.simulate import apply_action
from tests.orchestrator.test_plan_text import CASES, CODER, desired, empty, running
from tests.properties.goals import goal_failures


class RecordingEffects:
    """Applies each action to a simulated world and remembers the order; fails or blocks where it is told to."""

    def __init__(self, wanted: Desired, world: Observed, failing: str = "", blocking: str = "") -> None:
        self.wanted = wanted
        self.world = world
        self.order: list[str] = []
        self._failing = failing
        self._blocking = blocking
        self.blocked = asyncio.Event()

    async def _do(self, action: Action) -> None:
        await asyncio.sleep(0)
        kind = type(action).__name__
        if kind == self._failing:
            raise EffectError("it broke", log_tail=("last line",), next_step=("logs", "world"))
        if kind == self._blocking:
            self.blocked.set()
            await asyncio.Event().wait()
        self.world = apply_action(action, self.wanted, self.world)
        self.order.append(kind)

    async def sync(self, action, report):
        report(Progress("download", 1, 2, "bytes"))
        await self._do(action)

    async def await_ready(self, action, report):
        await self._do(action)

    start = publish = drain = stop = withdraw = rewire = _do


async def run(plan: Plan, effects: RecordingEffects) -> tuple[list[Event], object]:
    events: list[Event] = []
    return events, await execute(plan, effects, events.append)


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if not reconcile(*case).conflicts))
async def test_executing_a_plan_reaches_the_goal(name):
    wanted, world = CASES[name]
    plan = reconcile(wanted, world)
    effects = RecordingEffects(wanted, world)
    events, outcome = await run(plan, effects)
    assert goal_failures(wanted, effects.world) == []
    assert outcome.is_complete == (not plan.unreachable)
    assert {event.action.id for event in events if isinstance(event, ActionStarted)} == {a.id for a in plan.actions}


async def test_what_waits_for_a_failed_action_is_skipped_and_the_rest_is_done():
    wanted = desired()
    plan = reconcile(wanted, empty())
    effects = RecordingEffects(wanted, empty(), failing="Sync")
    events, outcome = await run(plan, effects)
    (failed,) = [event for event in events if isinstance(event, ActionFailed)]
    assert failed.error.log_tail == ("last line",)
    skipped = [event for event in events if isinstance(event, ActionSkipped)]
    assert [type(event.action).__name__ for event in skipped] == ["Start", "AwaitReady", "Publish"]
    assert [event.because for event in skipped] == [failed.action] * 3
    assert effects.order == ["Rewire", "Start", "AwaitReady"]  # the gateway
    assert not outcome.is_complete
    assert len(outcome.done) + len(outcome.failed) + len(outcome.skipped) == len(plan.actions)


async def test_a_new_unit_that_fails_leaves_the_old_one_alone():
    wanted = desired(coder={**CODER, "port": 18123})
    world = running(desired())
    effects = RecordingEffects(wanted, world, failing="AwaitReady")
    await run(reconcile(wanted, world), effects)
    old = next(unit for unit in world.units() if unit.slot == "coder-0.0")
    assert next(unit for unit in effects.world.units() if unit.id == old.id).ready
    assert old.id in {instance.unit for instance in effects.world.routes.instances}


async def test_cancelling_stops_what_is_under_way():
    wanted = desired()
    effects = RecordingEffects(wanted, empty(), blocking="AwaitReady")
    task = asyncio.create_task(execute(reconcile(wanted, empty()), effects, lambda _: None))
    await effects.blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "Publish" not in effects.order


async def test_independent_actions_run_side_by_side():
    wanted = desired(coder=CODER, titan={**CODER, "nodes": ["beta"]})
    effects = RecordingEffects(wanted, empty(), blocking="AwaitReady")
    task = asyncio.create_task(execute(reconcile(wanted, empty()), effects, lambda _: None))
    async with asyncio.timeout(60):
        while effects.order.count("Start") < 3:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_progress_is_passed_on_and_every_end_is_told():
    wanted = desired()
    events, _ = await run(reconcile(wanted, empty()), RecordingEffects(wanted, empty()))
    assert any(isinstance(event, ActionProgress) and event.progress.phase == "download" for event in events)
    done = [event.action.id for event in events if isinstance(event, ActionDone)]
    assert len(done) == len(set(done)) == len(reconcile(wanted, empty()).actions)


async def test_asked_to_stop_it_cuts_waits_short_and_begins_nothing_more():
    wanted, stop = desired(), asyncio.Event()
    events: list[Event] = []
    effects = RecordingEffects(wanted, empty(), blocking="AwaitReady")
    task = asyncio.create_task(execute(reconcile(wanted, empty()), effects, events.append, stop))
    await effects.blocked.wait()
    stop.set()
    outcome = await task
    assert outcome.was_interrupted
    assert outcome.words == "interrupted"
    assert "Publish" not in effects.order
    cut = [event for event in events if isinstance(event, ActionFailed)]
    assert {str(event.error) for event in cut} == {"interrupted"}
    assert len(outcome.done) + len(outcome.failed) + len(outcome.skipped) == len(reconcile(wanted, empty()).actions)


async def test_asked_to_stop_it_lets_what_takes_a_moment_finish():
    wanted, stop = desired(), asyncio.Event()

    class Slow(RecordingEffects):
        async def start(self, action):
            stop.set()
            await asyncio.sleep(0.05)
            await self._do(action)

    outcome = await execute(reconcile(wanted, empty()), Slow(wanted, empty()), lambda _: None, stop)
    assert any(action.startswith("start:") for action in outcome.done)
    assert outcome.was_interrupted


async def test_stopping_after_the_last_action_changes_nothing():
    wanted, stop = desired(), asyncio.Event()
    stop.set()
    outcome = await execute(reconcile(wanted, running(wanted)), RecordingEffects(wanted, empty()), lambda _: None, stop)
    assert outcome.is_complete
    assert not outcome.was_interrupted
