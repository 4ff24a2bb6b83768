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
    Reference,
    Rewire,
    Start,
    Stop,
    Sync,
    Unload,
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
    """`bytes`, `steps`, `tokens`, `answers` or `percent`."""


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
    """An action was not tried."""

    action: Action
    because: Action
    """What failed: what it waits for, or what that waits for."""


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
    async def reference(self, action: Reference, report: Report) -> None: ...
    async def start(self, action: Start) -> None: ...
    async def await_ready(self, action: AwaitReady, report: Report) -> None: ...
    async def publish(self, action: Publish) -> None: ...
    async def drain(self, action: Drain) -> None: ...
    async def stop(self, action: Stop) -> None: ...
    async def unload(self, action: Unload) -> None: ...
    async def withdraw(self, action: Withdraw) -> None: ...
    async def rewire(self, action: Rewire) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a plan's execution ended."""

    done: tuple[ActionId, ...]
    failed: tuple[ActionId, ...]
    skipped: tuple[ActionId, ...]
    was_interrupted: bool = False
    """It was asked to stop before the end: `failed` has what was cut short, `skipped` what was not begun."""

    @property
    def is_complete(self) -> bool:
        """Tell whether everything was done."""
        return not self.failed and not self.skipped

    @property
    def words(self) -> str:
        """Return how it ended, as the journal says it."""
        return "interrupted" if self.was_interrupted else "applied" if self.is_complete else "partly applied"


async def execute(plan: Plan, effects: Effects, emit: Emit, stop: asyncio.Event | None = None) -> Outcome:
    """Do every action whose dependencies succeeded, side by side where they allow it.

    Once `stop` is set nothing more is begun, waits and transfers are cut short, and what takes a moment is finished.
    Cancelling it cancels all actions under way at once; each of them can be done again.
    """
    execution = _Execution(plan, effects, emit, stop or asyncio.Event())
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(execution.obey_stop())
        await asyncio.gather(*(group.create_task(execution.run(action), name=action.id) for action in plan.actions))
        stopping.cancel()
    return execution.outcome()


class _Execution:
    """One walk over a plan's graph."""

    def __init__(self, plan: Plan, effects: Effects, emit: Emit, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        self._effects = effects
        self._emit = emit
        self._stop = stop
        self._results: dict[ActionId, asyncio.Future[bool]] = {a.id: loop.create_future() for a in plan.actions}
        self._long: set[asyncio.Task[None]] = set()
        """What may take minutes and is under way."""
        self._done: list[ActionId] = []
        self._failed: list[ActionId] = []
        self._skipped: list[ActionId] = []
        self._causes: dict[ActionId, Action] = {}
        """What failed first, of everything that failed or was skipped for it."""

    def outcome(self) -> Outcome:
        is_whole = not self._failed and not self._skipped
        was_interrupted = self._stop.is_set() and not is_whole
        return Outcome(tuple(self._done), tuple(self._failed), tuple(self._skipped), was_interrupted)

    async def obey_stop(self) -> None:
        """Cut long actions short once it is asked for."""
        await self._stop.wait()
        for task in tuple(self._long):
            task.cancel()

    async def run(self, action: Action) -> None:
        """Do one action after those that it waits for."""
        for dependency in action.after:
            if not await self._results[dependency]:
                if not self._stop.is_set():
                    self._causes[action.id] = self._causes[dependency]
                    self._emit(ActionSkipped(action, self._causes[action.id]))
                return self._end(action, self._skipped, is_done=False)
        if self._stop.is_set():
            return self._end(action, self._skipped, is_done=False)
        self._emit(ActionStarted(action))
        began = time.monotonic()
        try:
            await self._perform(action)
        except EffectError as error:
            self._causes[action.id] = action
            self._emit(ActionFailed(action, error))
            return self._end(action, self._failed, is_done=False)
        self._emit(ActionDone(action, time.monotonic() - began))
        return self._end(action, self._done, is_done=True)

    async def _perform(self, action: Action) -> None:
        """Do an action; one that was cut short by `stop`, and by nobody else, has failed."""
        report: Report = lambda progress: self._emit(ActionProgress(action, progress))  # noqa: E731
        if not isinstance(action, Provision | Sync | Pull | Reference | AwaitReady | Drain | Unload):
            await _perform(action, self._effects, report)
            return
        task = asyncio.ensure_future(_perform(action, self._effects, report))
        self._long.add(task)
        try:
            await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._stop.is_set() and me is not None and not me.cancelling():
                raise EffectError("interrupted") from None
            raise
        finally:
            self._long.discard(task)

    def _end(self, action: Action, where: list[ActionId], *, is_done: bool) -> None:
        where.append(action.id)
        self._results[action.id].set_result(is_done)


async def _perform(action: Action, effects: Effects, report: Report) -> None:
    match action:
        case Provision():
            await effects.provision(action, report)
        case Pull():
            await effects.pull(action, report)
        case Sync():
            await effects.sync(action, report)
        case Reference():
            await effects.reference(action, report)
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
        case Unload():
            await effects.unload(action)
        case Withdraw():
            await effects.withdraw(action)
        case Rewire():
            await effects.rewire(action)
        case Defer():
            raise EffectError(f"{action.node} cannot be reached: {action.cause}; run apply again when it is back")
