"""A pass gives way where nothing is lost by it, and nowhere else; over recording effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.execute import Event, execute
from orchestrator.plan import AwaitReady, Plan, Stop
from orchestrator.reconcile import reconcile
from orchestrator.watch_pass import WatchPass
from tests.orchestrator.test_execute import RecordingEffects
from tests.orchestrator.test_plan_text import desired, empty


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
        await asyncio.wait_for(self.effects.blocked.wait(), 10)
        do(self.work)
        done, _ = await asyncio.wait([running], timeout=0.5)
        if done:
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


async def test_a_pass_that_nothing_disturbs_has_an_outcome():
    trial = Trial("nothing")
    outcome = await trial.work.run()
    assert outcome is not None
    assert outcome.is_complete
    assert trial.events


async def test_giving_way_waits_for_what_must_be_finished():
    trial = Trial("AwaitReady")
    trial.work.give_way()  # before anything has begun
    assert await asyncio.wait_for(trial.work.run(), 10) is None
    kinds = {type(event.action).__name__ for event in trial.events}
    assert kinds & {"Sync", "Start", "Rewire"}
