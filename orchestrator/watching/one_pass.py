"""I/O: one plan that a watcher carries out, and that ends early where nothing is lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Set
from typing import Any

from orchestrator.execute import ActionDone, ActionFailed, ActionStarted, Emit, Event, Outcome
from orchestrator.plan import Action, ActionId, AwaitReady, Plan, Provision, Pull, Reference, Stop, Sync

Apply = Callable[[Emit], Coroutine[Any, Any, Outcome]]
"""Carries the plan out and tells what happens."""
CAN_BE_CUT = (AwaitReady, Sync, Provision, Pull, Reference)


class WatchPass:
    """One plan under way. Loading, fetching and provisioning may be cut short: the next plan goes on with them."""

    def __init__(self, plan: Plan, apply: Apply, emit: Emit) -> None:
        self._apply = apply
        self._emit = emit
        self._active: dict[ActionId, Action] = {}
        self._gives_way = False
        self.is_cut = False
        """It gave way and was cut short: what it leaves behind is put in order, which is not cut again."""
        self._applying: asyncio.Task[Outcome] | None = None
        self._own_ends = _own_ends(plan)
        self._looks = 0

    async def run(self) -> Outcome | None:
        """Carry it out; None where it gave way before it was done."""
        self._applying = asyncio.create_task(self._apply(self._note))
        try:
            return await self._applying
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._gives_way and me is not None and not me.cancelling():
                return None
            raise

    def units_ended(self, gone: Set[str]) -> None:
        """Give way to the mending of units that ended, unless this plan stops or awaits them anyway."""
        awaited = {unit for action in self._active.values() for unit in _awaited(action)}
        if gone - self._own_ends - awaited:
            self.give_way()

    def give_way(self) -> None:
        """End as soon as nothing is under way that should not be cut short."""
        self._gives_way = True
        self._look_soon()

    def _note(self, event: Event) -> None:
        match event:
            case ActionStarted(action=action):
                self._active[action.id] = action
            case ActionDone(action=action):
                self._active.pop(action.id, None)
                self._own_ends -= _awaited(action)  # they serve now: nobody here would notice their end
            case ActionFailed(action=action):
                self._active.pop(action.id, None)
                self._own_ends |= _awaited(action)  # what failed is ended, and its end is heard of later
            case _:
                pass
        self._emit(event)
        if self._gives_way:
            self._look_soon()

    def _look_soon(self) -> None:
        """Look once the execution has begun what waited for the latest event: it is woken in the loop's next round."""
        self._looks += 1
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._end_where_nothing_is_lost, self._looks)

    def _end_where_nothing_is_lost(self, look: int) -> None:
        if look != self._looks or self.is_cut:
            return
        can_be_cut = all(isinstance(action, CAN_BE_CUT) for action in self._active.values())
        if self._applying is not None and self._active and can_be_cut:
            self.is_cut = True
            self._applying.cancel()


def _own_ends(plan: Plan) -> set[str]:
    """Return the units whose end this plan brings about, or notices by itself before they serve."""
    ends: set[str] = set()
    for action in plan.actions:
        if isinstance(action, Stop):
            ends.add(action.unit)
        elif isinstance(action, AwaitReady) and not action.is_serving:
            ends |= _awaited(action)
    return ends


def _awaited(action: Action) -> set[str]:
    """Return the units whose end the action notices while it is under way."""
    return {action.unit, *(unit for _, unit in action.others)} if isinstance(action, AwaitReady) else set()
