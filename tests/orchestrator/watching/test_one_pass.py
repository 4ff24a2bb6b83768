"""A pass gives way where nothing is lost by it, and nowhere else; over recording effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from orchestrator.execute import ActionDone, ActionFailed, ActionStarted, EffectError, Emit, Event, Outcome, execute
from orchestrator.plan import AwaitReady, Plan, Stop
from orchestrator.reconcile import reconcile
from orchestrator.watching.one_pass import WatchPass
from tests.orchestrator.test_execute import RecordingEffects
from tests.orchestrator.test_plan_text import CODER, SWAPPED, desired, empty, running

ROUNDS = 200
"""Rounds of the loop, of which giving way takes a few; all that a pass does here is done in them."""


class Trial:
    """A pass over the start of a whole stack, in which one kind of action never ends."""

    def __init__(self, blocking: str) -> None:
        wanted, world = desired(), empty()
        self.plan: Plan = reconcile(wanted, world)
        self.effects = RecordingEffects(wanted, world, blocking=blocking)
        self.events: list[Event] = []
        self.work = WatchPass(self.plan, lambda emit: execute(self.plan, self.effects, emit), self.events.append)

    async def during(self, do: Callable[[WatchPass], None]) -> tuple[bool, object]:
        """Do something while an action blocks; returns whether the pass ended by itself, and its outcome."""
        running = asyncio.create_task(self.work.run())
        await asyncio.wait_for(self.effects.blocked.wait(), 60)
        do(self.work)
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
        if running.done():
            return True, running.result()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        return False, None


async def test_waiting_is_cut_short_for_a_command():
    assert await Trial("AwaitReady").during(lambda work: work.give_way()) == (True, None)


async def test_fetching_is_cut_short_for_a_command():
    assert await Trial("Sync").during(lambda work: work.give_way()) == (True, None)


async def test_a_start_under_way_is_never_cut_short():
    assert await Trial("Start").during(lambda work: work.give_way()) == (False, None)


async def test_the_end_of_another_unit_is_more_urgent_than_waiting():
    assert await Trial("AwaitReady").during(lambda work: work.units_ended({"other-0.0@1"})) == (True, None)


async def test_the_end_of_a_unit_that_is_awaited_is_noticed_by_the_waiting():
    trial = Trial("AwaitReady")
    awaited = {action.unit for action in trial.plan.actions if isinstance(action, AwaitReady | Stop)}
    assert await trial.during(lambda work: work.units_ended(awaited)) == (False, None)
    assert await Trial("AwaitReady").during(lambda work: work.units_ended(set())) == (False, None)


def one_awaits(is_serving: bool = False) -> tuple[Plan, AwaitReady, AwaitReady]:
    """Return a plan, and two of its waits, of which the first may be the judging of what serves already."""
    plan = reconcile(desired(titan={**CODER, "nodes": ["beta"]}), empty())
    first, second, *_ = (action for action in plan.actions if isinstance(action, AwaitReady))
    judged = replace(first, is_serving=is_serving)
    actions = tuple(judged if action is first else action for action in plan.actions)
    return replace(plan, actions=actions), judged, second


async def gives_way(plan: Plan, events: list[Event], gone: set[str]) -> bool:
    """Tell whether a pass in which these events were told gives way to the end of units."""
    told = asyncio.Event()

    async def apply(emit: Emit) -> Outcome:
        for event in events:
            emit(event)
        told.set()
        await asyncio.Event().wait()
        raise AssertionError

    work = WatchPass(plan, apply, lambda event: None)
    running = asyncio.create_task(work.run())
    await asyncio.wait_for(told.wait(), 60)
    work.units_ended(gone)
    for _ in range(ROUNDS):
        await asyncio.sleep(0)
    has_ended = running.done()
    running.cancel()
    await asyncio.wait([running])
    return has_ended


async def test_the_end_of_what_was_awaited_and_serves_now_is_mended_at_once():
    plan, first, second = one_awaits()
    started = [ActionStarted(first), ActionDone(first, 1.0), ActionStarted(second)]
    assert await gives_way(plan, started, {first.unit})
    assert not await gives_way(plan, started, {second.unit})


async def test_the_end_of_what_failed_while_it_was_awaited_is_no_news():
    plan, first, second = one_awaits()
    failed = ActionFailed(first, EffectError("it broke"))
    assert not await gives_way(plan, [ActionStarted(first), failed, ActionStarted(second)], {first.unit})


async def test_what_serves_and_is_to_be_judged_is_missed_at_once_unless_it_is_being_judged():
    plan, judged, other = one_awaits(is_serving=True)
    assert await gives_way(plan, [ActionStarted(other)], {judged.unit})
    assert not await gives_way(plan, [ActionStarted(judged)], {judged.unit})


async def test_a_pass_that_nothing_disturbs_has_an_outcome():
    trial = Trial("nothing")
    outcome = await trial.work.run()
    assert outcome is not None
    assert outcome.is_complete
    assert trial.events


async def test_giving_way_waits_for_what_must_be_finished():
    trial = Trial("AwaitReady")
    trial.work.give_way()  # before anything has begun
    assert await asyncio.wait_for(trial.work.run(), 60) is None
    kinds = {type(event.action).__name__ for event in trial.events}
    assert kinds & {"Sync", "Start", "Rewire"}


async def test_what_a_cut_leaves_in_order_is_not_cut_again():
    trial = Trial("AwaitReady")
    settling, going_on, settled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def apply(emit: Emit) -> Outcome:
        try:
            return await execute(trial.plan, trial.effects, emit)
        finally:
            settling.set()
            await going_on.wait()
            settled.set()

    work = WatchPass(trial.plan, apply, trial.events.append)
    running = asyncio.create_task(work.run())
    await asyncio.wait_for(trial.effects.blocked.wait(), 60)
    assert not work.is_cut
    work.give_way()
    await asyncio.wait_for(settling.wait(), 60)
    assert work.is_cut
    work.give_way()
    for _ in range(ROUNDS):
        await asyncio.sleep(0)
    assert not running.done()
    going_on.set()
    assert await asyncio.wait_for(running, 60) is None
    assert settled.is_set()


async def test_a_swap_is_not_cut_between_its_stop_and_its_start():
    beside: dict[str, object] = {**CODER, "nodes": ["beta"]}
    wanted, world = desired(coder=SWAPPED, titan=beside), running(desired())
    plan = reconcile(wanted, world)
    effects = RecordingEffects(wanted, world, blocking="Sync")

    def give_way_at_the_stop(event: Event) -> None:
        if isinstance(event, ActionStarted) and isinstance(event.action, Stop):
            work.give_way()

    work = WatchPass(plan, lambda emit: execute(plan, effects, emit), give_way_at_the_stop)
    assert await asyncio.wait_for(work.run(), 60) is None
    assert effects.blocked.is_set()
    assert effects.order[-2:] == ["Stop", "Start"]
