"""I/O: keeps a stack as its files say: looks, plans and mends, again and again, until it is told to end.

Level-triggered: every look is at everything, so an event that was missed costs time only (see `pace`, `events`).
It holds the stack's lock only while it changes something, and gives way to a command that wants it, and to what has
become more urgent, as soon as nothing but waiting and loading is under way (see `one_pass`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.controller import Controller
from orchestrator.execute import ActionFailed, Emit, Event, Outcome
from orchestrator.installed import InstalledMemory
from orchestrator.node.client import LockedError, ShimError
from orchestrator.plan import Change, Defer, Plan, Start
from orchestrator.planned import Planned, Wanted
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import GATEWAY_SLOT
from orchestrator.scope import no_longer_lost
from orchestrator.transport.base import TransportError
from orchestrator.watching.delivery import Deliveries, can_deliver
from orchestrator.watching.events import NodeEvents, follow_files
from orchestrator.watching.one_pass import WatchPass
from orchestrator.watching.pace import Pace
from orchestrator.watching.report import WatcherReport, WatcherState, write_watcher
from orchestrator.watching.source import Source, StackDownError

log = logging.getLogger(__name__)

BUSY_S = 2.0
"""How soon to look again while another command changes the stack."""
LONG_LOOK_S = 2.0
"""A look that takes longer waits for a unit that does not answer."""
REPEAT_S = 300.0
"""What the looks wait for is told again after this."""
HEALS = PlanPolicy(heals=True)
ACTOR = "watch"
"""Who did it, in the journal and in the audit of the nodes."""


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that a watcher tells."""

    kind: str
    """`watching`, `change`, `failure`, `mended`, `not mended`, `problem` or `note`."""
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)
    """The same for programs."""


Tell = Callable[[Told], None]


class Watcher:
    """The watcher of one stack; `watch` runs until it is cancelled."""

    def __init__(self, control: Controller, tell: Tell) -> None:
        self._control = control
        self._tell = tell
        self._source = Source(control)
        self._pace = Pace(look_at=time.monotonic())
        self._heard = asyncio.Event()
        self._nodes = NodeEvents(control.stack, self)
        self._pass: WatchPass | None = None
        self._looking: asyncio.Task[Planned | None] | None = None
        self._looking_since = 0.0
        self._notes: tuple[str, ...] = ()
        self._awaited: dict[str, float] = {}
        self._deliveries = Deliveries(control)
        self._installed = InstalledMemory()
        control.note = self._awaits
        self._report = WatcherReport(pid=os.getpid(), started_at=time.time(), looked_at=0.0, state="mending")

    async def watch(self) -> None:
        """Keep the stack as its files say. Raises `StackDownError` once a command has taken it down."""
        control = self._control
        state = control.directories.stack(control.stack)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tell(Told("watching", f"watching {control.stack} ({control.conf})", {"pid": os.getpid()}))
        async with asyncio.TaskGroup() as group:
            end = asyncio.Event()
            files = group.create_task(
                follow_files(control.conf, state, control.directories.wanted(control.stack), self, end)
            )
            try:
                while True:
                    await self._until_due()
                    await self._look(group)
            finally:
                end.set()
                files.cancel()
                self._nodes.close()

    # -- what is heard ---------------------------------------------------------------------------------------------

    def files_changed(self) -> None:
        """Look soon: the files, or what was applied of them, have changed."""
        self._hear()
        if self._pass is not None and self._source.has_changed():
            self._pass.give_way()

    def lock_wanted(self) -> None:
        """Let a command have the lock."""
        if self._pass is not None:
            self._pass.give_way()

    def units_changed(self, gone: Set[str]) -> None:
        """Look soon: units began or ended on a node."""
        self._hear()
        if self._pass is not None:
            self._pass.units_ended(gone)
        elif gone and self._looking is not None and time.monotonic() - self._looking_since > LONG_LOOK_S:
            self._looking.cancel()

    def _hear(self) -> None:
        self._pace = self._pace.changed(time.monotonic())
        self._heard.set()

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _until_due(self) -> None:
        while (wait_s := self._pace.next_look - time.monotonic()) > 0:
            self._heard.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._heard.wait()

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Look once, and mend what is not as it should be."""
        self._pace = self._pace.begun()
        within_s: float | None = None
        state: WatcherState = "blocked"
        mended = self._report.mended
        try:
            planned = await self._plan_unless_overtaken()
            if planned is not None:
                self._nodes.follow(group, planned.cluster.nodes, planned.desired.nodes)
                within_s = planned.plan.next_look_s
                can_mend = _can_mend(planned.plan)
                if not can_mend and can_deliver(planned):
                    await self._deliveries.bring(planned, self._plan_anew)
                state = await self._mend(planned) if can_mend else _resting(planned.plan)
        except LockedError as error:
            state, within_s = "waiting", BUSY_S
            self._say((f"waiting for {error.holder.get('command')} (pid {error.holder.get('pid')})",))
        except StackDownError:
            raise
        except Exception as error:
            # Whatever goes wrong in one look, the next one begins anew; nobody would start the watcher again.
            reasons = _reasons(error)
            if reasons is None:
                log.exception("a look failed")
            self._say(reasons or (f"a look failed: {type(error).__name__}: {error}",))
        is_quiet = state == "well" and not self._notes and mended == self._report.mended
        self._pace = self._pace.looked(time.monotonic(), within_s, is_quiet=is_quiet)
        self._write(state)

    async def _plan_unless_overtaken(self) -> Planned | None:
        """Plan; a look that waits for a silent unit is begun anew when others end meanwhile."""
        while True:
            self._looking, self._looking_since = asyncio.create_task(self._plan()), time.monotonic()
            try:
                return await self._looking
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if me is None or me.cancelling():
                    raise
            finally:
                self._looking = None

    async def _plan(self) -> Planned | None:
        """Plan what is wanted now; while that is bad or cannot be applied, what was good before is mended."""
        wanted, problems = await self._source.wanted()
        planned = await self._plan_of(wanted) if wanted is not None else None
        if planned is not None and self._has_found_lost(planned):
            return await self._plan()
        if planned is not None and planned.plan.conflicts:
            problems += planned.plan.conflicts
            before = self._source.good
            planned = await self._plan_of(before) if before is not None and before != wanted else None
            planned = None if planned is not None and planned.plan.conflicts else planned
        elif wanted is not None:
            self._source.good = wanted
        if planned is not None and problems and _starts_gateway(planned.plan):
            planned = await self._plan_of(await self._with_kept_files(planned))
        self._say((*problems, *(_waits_for(planned.plan) if planned is not None else ())))
        return planned

    async def _plan_anew(self) -> Planned | None:
        """Plan from what is there now, whatever was read before."""
        self._source.forget()
        self._installed.forget()
        return await self._plan()

    async def _plan_of(self, wanted: Wanted) -> Planned:
        policy = replace(HEALS, assume_lost=self._control.policy.assume_lost)
        return await self._control.plan_of(wanted, policy, installed=self._installed)

    def _has_found_lost(self, planned: Planned) -> bool:
        """Take nodes that answer, or that are none any more, out of those assumed lost; tells whether there was one."""
        lost = self._control.policy.assume_lost
        ended = no_longer_lost(lost, planned.desired.nodes, planned.observed.nodes)
        for name, text in sorted(ended.items()):
            self._tell(Told("note", text, {"node": name}))
        self._control.policy = replace(self._control.policy, assume_lost=lost - ended.keys())
        if ended:
            self._source.forget()  # what had moved away from it belongs there again
        return bool(ended)

    async def _with_kept_files(self, planned: Planned) -> Wanted:
        """Return what a plan is for, from kept files: a gateway that begins has no last good routes of its own."""
        place = await asyncio.to_thread(self._control.snapshots.keep, planned.files)
        desired = replace(planned.desired, files=str(place))
        return Wanted(desired, planned.git, planned.files, planned.back_to, is_current=False)

    # -- mending ---------------------------------------------------------------------------------------------------

    async def _mend(self, planned: Planned) -> WatcherState:
        """Carry out a plan under the stack's lock, if it is still the plan then; returns how things are afterwards."""
        control, now = self._control, time.monotonic()
        if not self._pace.may_act(planned.plan.fingerprint(), now) or _is_lock_wanted(control):
            return "waiting"
        async with control.lock(f"watch {control.stack}: {_cause(planned.plan)}", yields=True):
            again = await self._plan_anew()  # what was seen may have been mended while the lock was awaited
            if again is None or not _can_mend(again.plan):
                return "blocked" if again is None else _resting(again.plan)
            self._write("mending")
            for change in _acted_on(again.plan):
                fields = {"target": change.target, "verb": change.verb, "cause": change.cause}
                self._tell(Told("change", f"{change.target}  {change.verb}  {change.cause}", fields))
            command = f"watch: {_cause(again.plan)}"

            def apply(emit: Emit) -> Coroutine[Any, Any, Outcome]:
                return control.apply(again, emit, command, ACTOR, is_followed=lambda: work.is_cut)

            work = self._pass = WatchPass(again.plan, apply, self._show)
            try:
                outcome = await work.run()
            finally:
                self._pass = None
        return self._ended(again, outcome)

    def _ended(self, planned: Planned, outcome: Outcome | None) -> WatcherState:
        number, now = planned.generation, time.monotonic()
        changed = {
            "mended": self._report.mended + 1,
            "last_change": _cause(planned.plan),
            "last_change_at": time.time(),
        }
        self._report = self._report.model_copy(update=changed)
        if outcome is None:
            self._tell(Told("note", f"generation {number} gave way to something else", {"generation": number}))
            return "waiting"
        deferred = {action.id for action in planned.plan.actions if isinstance(action, Defer)}
        left = [action for action in (*outcome.failed, *outcome.skipped) if action not in deferred]
        self._pace = self._pace.acted(now, planned.plan.fingerprint(), is_complete=not left)
        kind = "not mended" if left else "mended"
        fields = {"generation": number, "done": len(outcome.done), "left": left}
        self._tell(Told(kind, f"{kind} (generation {number})", fields))
        return "waiting" if left else _resting(planned.plan)

    def _show(self, event: Event) -> None:
        if isinstance(event, ActionFailed) and not isinstance(event.action, Defer):
            fields = {"action": event.action.id, "error": str(event.error), "log_tail": list(event.error.log_tail)}
            self._tell(Told("failure", f"{event.action.id} failed: {event.error}", fields))

    # -- telling ---------------------------------------------------------------------------------------------------

    def _say(self, notes: tuple[str, ...]) -> None:
        """Tell what keeps it from mending: each thing once for as long as it holds."""
        for text in notes:
            if text not in self._notes:
                self._tell(Told("problem", text))
        if self._notes and not notes:
            self._tell(Told("note", "nothing is in the way any more"))
        self._notes = notes

    def _awaits(self, text: str) -> None:
        """Tell what a look has to wait for: not again at each of the looks that follow."""
        now = time.monotonic()
        if now - self._awaited.get(text, -REPEAT_S) >= REPEAT_S:
            self._tell(Told("note", text))
            self._awaited = {**{old: at for old, at in self._awaited.items() if now - at < REPEAT_S}, text: now}

    def _write(self, state: WatcherState) -> None:
        changes = {"looked_at": time.time(), "state": state, "notes": self._notes}
        self._report = self._report.model_copy(update=changes)
        write_watcher(self._control.directories.watcher(self._control.stack), self._report)


def _reasons(error: BaseException) -> tuple[str, ...] | None:
    """Return what a node, the shim or the system said; None for an error that nobody expects."""
    if isinstance(error, BaseExceptionGroup):
        inner = [_reasons(each) for each in error.exceptions]
        return None if None in inner else tuple(text for each in inner for text in each or ())
    return (str(error),) if isinstance(error, TransportError | ShimError | OSError) else None


def _can_mend(plan: Plan) -> bool:
    is_doing = any(not isinstance(action, Defer) for action in plan.actions)
    return not plan.conflicts and is_doing and bool(_acted_on(plan))


def _starts_gateway(plan: Plan) -> bool:
    return any(isinstance(action, Start) and action.first.unit.spec.slot == GATEWAY_SLOT for action in plan.actions)


def _resting(plan: Plan) -> WatcherState:
    """Return how things are when nothing can be done now."""
    kinds = {change.kind for change in plan.changes}
    return "blocked" if "failed" in kinds else "waiting" if kinds else "well"


def _waits_for(plan: Plan) -> tuple[str, ...]:
    """Return what a plan leaves as it is, and why; a backoff ends by itself."""
    kept = [change for change in plan.changes if change.kind in ("failed", "defer")]
    return tuple(f"{change.target}: {change.cause}" for change in kept)


def _acted_on(plan: Plan) -> list[Change]:
    """Return the changes that something is done about now."""
    return [change for change in plan.changes if change.kind not in ("failed", "defer", "hold")]


def _cause(plan: Plan) -> str:
    """Return in a few words why a plan is carried out."""
    done = _acted_on(plan)
    first = f"{done[0].target} {done[0].cause}" if done else "routes"
    return first if len(done) < 2 else f"{first}, and {len(done) - 1} more"


def _is_lock_wanted(control: Controller) -> bool:
    """Tell whether a command is waiting for the lock now."""
    try:
        return time.time() - control.directories.wanted(control.stack).stat().st_mtime < BUSY_S
    except OSError:
        return False
