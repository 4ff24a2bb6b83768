"""I/O: what a watcher brings to the nodes when nothing else is to be done: changed keys and changed memory budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from orchestrator.controller import Controller
from orchestrator.delivery import keys_of
from orchestrator.observed import Reachable
from orchestrator.planned import Planned
from orchestrator.sharing import allotments
from schemas.base import NodeName
from schemas.on_demand import Allotment

PlanAgain = Callable[[], Awaitable[Planned | None]]


class Deliveries:
    """Remembers what the nodes were told, and tells them what has changed since."""

    def __init__(self, control: Controller) -> None:
        self._control = control
        self._keys: bytes | None = None
        """None before the first look, at which they are as the last apply left them."""
        self._allotted: dict[NodeName, Allotment] = {}

    async def bring(self, planned: Planned, plan_again: PlanAgain) -> None:
        """Tell the on-demand models what they share, and the gateway its keys, where that has changed.

        What is told is what holds once the lock is ours: the plan is made again then, as a command may have changed the
        stack since `planned` was. A node that cannot be reached is told when it is back. Raises `LockedError`,
        `TransportError` and `OSError`.
        """
        keys = await asyncio.to_thread(keys_of, planned.desired)
        allotted = _reached(planned)
        is_known = keys == self._keys and allotted.items() <= self._allotted.items()
        if self._keys is not None and not is_known:
            async with self._control.lock(f"watch {self._control.stack}: on-demand memory", yields=True):
                again = await plan_again()
                if again is None or not can_deliver(again):
                    return
                keys = await asyncio.to_thread(keys_of, again.desired)
                allotted = _reached(again)
                await self._control.allot(again)
        self._keys = keys
        self._allotted = {**self._allotted, **allotted}


def can_deliver(planned: Planned) -> bool:
    """Tell whether a plan that is not carried out, for whatever reason, lets its keys and budgets be brought."""
    return not planned.plan.conflicts and isinstance(planned.observed.nodes.get(planned.cluster.gateway), Reachable)


def _reached(planned: Planned) -> Mapping[NodeName, Allotment]:
    nodes, found = planned.observed.nodes, allotments(planned.desired, planned.observed)
    return {name: each for name, each in found.items() if isinstance(nodes.get(name), Reachable)}
