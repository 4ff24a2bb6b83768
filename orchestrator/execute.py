"""I/O: walks a plan's graph over an `Effects`; decides nothing. What cannot be done is reported, not worked around."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.plan import (
    Action,
    ActionId,
    AwaitReady,
    Defer,
    Drain,
    Plan,
    Provision,
    Publish,
    Pull,
    Rewire,
    Start,
    Stop,
    Sync,
    Withdraw,
)


@dataclass(frozen=True, slots=True)
class ActionStarted:
    """An action begins."""

    action: Action


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long action is."""

    phase: str
    """What it does now: `download`, `convert`, `loading`, ..."""
    done: int
    total: int | None
    unit: str
    """`bytes`, `steps` or `percent`."""


@dataclass(frozen=True, slots=True)
class ActionProgress:
    """An action has come some way."""

    action: Action
    progress: Progress


@dataclass(frozen=True, slots=True)
class ActionDone:
    """An action succeeded."""

    action: Action
    seconds: float


@dataclass(frozen=True, slots=True)
class ActionFailed:
    """An action failed; everything that waits for it is skipped."""

    action: Action
    error: EffectError


@dataclass(frozen=True, slots=True)
class ActionSkipped:
    """An action was not tried, because one that it waits for failed."""

    action: Action
    because: ActionId


Event = ActionStarted | ActionProgress | ActionDone | ActionFailed | ActionSkipped
Emit = Callable[[Event], None]
Report = Callable[[Progress], None]


class EffectError(Exception):
    """An action could not be done. `log_tail` has a unit's last lines, `next_step` the command that tells more."""

    def __init__(self, message: str, *, log_tail: tuple[str, ...] = (), next_step: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.next_step = next_step
        """The words behind the program's name, such as `logs`, stack, unit."""


class Effects(Protocol):
    """What actions do. Each may be done again after a crash with the same end. Raises `EffectError`."""

    async def provision(self, action: Provision, report: Report) -> None: ...
    async def pull(self, action: Pull, report: Report) -> None: ...
    async def sync(self, action: Sync, report: Report) -> None: ...
    async def start(self, action: Start) -> None: ...
    async def await_ready(self, action: AwaitReady, report: Report) -> None: ...
    async def publish(self, action: Publish) -> None: ...
    async def drain(self, action: Drain) -> None: ...
    async def stop(self, action: Stop) -> None: ...
    async def withdraw(self, action: Withdraw) -> None: ...
    async def rewire(self, action: Rewire) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a plan's execution ended."""

    done: tuple[ActionId, ...]
    failed: tuple[ActionId, ...]
    skipped: tuple[ActionId, ...]

    @property
    def is_complete(self) -> bool:
        """Tell whether everything was done."""
        return not self.failed and not self.skipped


async def execute(plan: Plan, effects: Effects, emit: Emit) -> Outcome:
    """Do every action whose dependencies succeeded, side by side where they allow it.

    Cancelling it cancels the actions under way; each of them can be done again.
    """
    results: dict[ActionId, asyncio.Future[bool]] = {}
    done: list[ActionId] = []
    failed: list[ActionId] = []
    skipped: list[ActionId] = []
    for action in plan.actions:
        results[action.id] = asyncio.get_running_loop().create_future()

    async def run(action: Action) -> None:
        for dependency in action.after:
            if not await results[dependency]:
                emit(ActionSkipped(action, dependency))
                skipped.append(action.id)
                results[action.id].set_result(False)
                return
        emit(ActionStarted(action))
        began = time.monotonic()
        try:
            await _perform(action, effects, lambda progress: emit(ActionProgress(action, progress)))
        except EffectError as error:
            emit(ActionFailed(action, error))
            failed.append(action.id)
            results[action.id].set_result(False)
        else:
            emit(ActionDone(action, time.monotonic() - began))
            done.append(action.id)
            results[action.id].set_result(True)

    async with asyncio.TaskGroup() as group:
        for action in plan.actions:
            group.create_task(run(action), name=action.id)
    return Outcome(tuple(done), tuple(failed), tuple(skipped))


async def _perform(action: Action, effects: Effects, report: Report) -> None:
    match action:
        case Provision():
            await effects.provision(action, report)
        case Pull():
            await effects.pull(action, report)
        case Sync():
            await effects.sync(action, report)
        case Start():
            await effects.start(action)
        case AwaitReady():
            await effects.await_ready(action, report)
        case Publish():
            await effects.publish(action)
        case Drain():
            await effects.drain(action)
        case Stop():
            await effects.stop(action)
        case Withdraw():
            await effects.withdraw(action)
        case Rewire():
            await effects.rewire(action)
        case Defer():
            raise EffectError(f"{action.node} cannot be reached: {action.cause}; run apply again when it is back")
