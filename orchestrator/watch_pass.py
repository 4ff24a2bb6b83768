"""I/O: one plan that a watcher carries out, and that ends early where nothing is lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import Set

from orchestrator.controller import Controller, Planned
from orchestrator.execute import ActionDone, ActionFailed, ActionStarted, Emit, Event, Outcome
from orchestrator.plan import Action, ActionId, AwaitReady, Provision, Pull, Stop, Sync

ACTOR = "watch"
"""Who did it, in the journal and in the audit of the nodes."""


class WatchPass:
    """One plan under way. Loading, fetching and provisioning may be cut short: the next plan goes on with them."""

    def __init__(self, control: Controller, planned: Planned, emit: Emit) -> None:
        self._control = control
        self._planned = planned
        self._emit = emit
        self._active: dict[ActionId, Action] = {}
        self._gives_way = False
        self._applying: asyncio.Task[Outcome] | None = None
        self._own_ends = _own_ends(planned)

    async def run(self, command: str) -> Outcome | None:
        """Carry it out; None where it gave way before it was done."""
        self._applying = asyncio.create_task(self._control.apply(self._planned, self._note, command, ACTOR))
        try:
            return await self._applying
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._gives_way and me is not None and not me.cancelling():
                return None
            raise

    def units_ended(self, gone: Set[str]) -> None:
        """Give way to the mending of units that ended, unless this plan stops or awaits them anyway."""
        if gone - self._own_ends:
            self.give_way()

    def give_way(self) -> None:
        """End as soon as nothing is under way that should not be cut short."""
        self._gives_way = True
        self._end_where_nothing_is_lost()

    def _note(self, event: Event) -> None:
        match event:
            case ActionStarted(action=action):
                self._active[action.id] = action
            case ActionDone(action=action) | ActionFailed(action=action):
                self._active.pop(action.id, None)
            case _:
                pass
        self._emit(event)
        if self._gives_way:
            self._end_where_nothing_is_lost()

    def _end_where_nothing_is_lost(self) -> None:
        can_be_cut = all(isinstance(action, AwaitReady | Sync | Provision | Pull) for action in self._active.values())
        if self._applying is not None and self._active and can_be_cut:
            self._applying.cancel()


def _own_ends(planned: Planned) -> set[str]:
    """Return the units whose end this plan brings about, or notices by itself."""
    ends: set[str] = set()
    for action in planned.plan.actions:
        if isinstance(action, Stop):
            ends.add(action.unit)
        elif isinstance(action, AwaitReady):
            ends.update((action.unit, *(unit for _, unit in action.others)))
    return ends
