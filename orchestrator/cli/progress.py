"""I/O: prints the events of an execution: bars on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self

import click

from orchestrator.cli.options import print_json, suggest
from orchestrator.execute import ActionDone, ActionFailed, ActionProgress, ActionSkipped, ActionStarted, Event, Progress
from orchestrator.plan import (
    Action,
    AwaitReady,
    Drain,
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
    action_data,
)
from schemas.unit import slot_of

PLAIN_STEP = 0.25
"""Share of a long action after which a plain line is printed again."""


class Printer(Protocol):
    """Something that shows events as they come; a context, so that bars are cleaned up."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def emit(self, event: Event) -> None: ...


def printer(as_json: bool) -> Printer:
    """Return the printer that fits the output."""
    if as_json:
        return JsonPrinter()
    return TerminalPrinter() if sys.stdout.isatty() else PlainPrinter()


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonPrinter(_Quiet):
    """One object an event."""

    def emit(self, event: Event) -> None:
        line: dict[str, Any] = {"type": "event", "event": type(event).__name__, "action": action_data(event.action)}
        match event:
            case ActionProgress(progress=progress):
                line |= {"phase": progress.phase, "done": progress.done, "total": progress.total, "unit": progress.unit}
            case ActionDone(seconds=seconds):
                line |= {"seconds": round(seconds, 3)}
            case ActionFailed(error=error):
                line |= {"error": str(error), "log_tail": list(error.log_tail), "next_step": list(error.next_step)}
            case ActionSkipped(because=because):
                line |= {"because": because.id}
            case ActionStarted():
                pass
        print_json(line)


class PlainPrinter(_Quiet):
    """A line for each thing that begins, comes along, ends or fails."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        match event:
            case ActionStarted(action=action) if is_long(action):
                click.echo(f"{title(action)} ...")
            case ActionProgress(action=action, progress=progress):
                self._progress(action, progress)
            case ActionDone(action=action, seconds=seconds):
                click.echo(f"{title(action)}: done ({seconds:.1f} s)")
            case ActionFailed() | ActionSkipped():
                click.echo(failure_text(event), err=True)

    def _progress(self, action: Action, progress: Progress) -> None:
        if not progress.total:
            return
        key, share = f"{action.id} {progress.phase}", progress.done / progress.total
        if share - self._shown.get(key, -PLAIN_STEP) >= PLAIN_STEP or (share >= 1.0 > self._shown.get(key, 0.0)):
            self._shown[key] = share
            click.echo(f"{title(action)}: {progress.phase} {amount(progress)}")


class TerminalPrinter:
    """A bar for each long action while it runs, a line when it ends."""

    def __init__(self) -> None:
        from rich import progress as bars
        from rich.console import Console

        self._console = Console(highlight=False)
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=30),
            bars.TextColumn("{task.fields[amount]}"),
            bars.TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def emit(self, event: Event) -> None:
        key = event.action.id
        match event:
            case ActionStarted(action=action) if is_long(action):
                self._tasks[key] = self._bars.add_task(title(action), total=None, amount="")
            case ActionProgress(action=action, progress=progress):
                if key in self._tasks:
                    self._bars.update(
                        self._tasks[key],
                        description=f"{title(action)}: {progress.phase}",
                        completed=progress.done,
                        total=progress.total,
                        amount=amount(progress),
                    )
            case ActionDone(action=action, seconds=seconds):
                self._end(key)
                self._console.print(f"[green]✓[/green] {title(action)} ({seconds:.1f} s)")
            case ActionFailed() | ActionSkipped():
                self._end(key)
                self._console.print(failure_text(event), style="red", markup=False)

    def _end(self, key: str) -> None:
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))


def is_long(action: Action) -> bool:
    """Tell whether an action may take so long that its beginning is worth a line."""
    return isinstance(action, Provision | Sync | Pull | Reference | AwaitReady | Drain | Unload)


def title(action: Action) -> str:
    """Return an action in words."""
    match action:
        case Sync(node=node, model=model):
            return f"fetch {node}/{model.name}"
        case Provision(node=node):
            return f"provision {node}"
        case Pull(helper=helper, model=name):
            return f"pull {helper}/{name}"
        case Reference(node=node, model=model):
            return f"compute the reference of {node}/{model.name}"
        case Start(units=units):
            slots = ", ".join(f"{placed.unit.node}/{placed.unit.spec.slot}" for placed in units)
            return f"start {slots}" + (f" on port {units[0].port}" if units[0].port else "")
        case AwaitReady(node=node, unit=unit_id, is_serving=True):
            return f"judge {node}/{slot_of(unit_id)}"
        case AwaitReady(node=node, unit=unit_id):
            return f"wait for {node}/{slot_of(unit_id)}"
        case Publish(instance=instance):
            return f"route to {instance.node}/{slot_of(instance.unit)}"
        case Drain(node=node, unit=unit_id):
            return f"drain {node}/{slot_of(unit_id)}"
        case Stop(node=node, unit=unit_id):
            return f"stop {node}/{slot_of(unit_id)}"
        case Unload(node=node, unit=unit_id):
            return f"unload {node}/{slot_of(unit_id)}"
        case Withdraw(node=node, unit=unit_id):
            return f"unroute {node}/{slot_of(unit_id)}"
        case Rewire():
            return "rewire gateway"
        case _:
            return f"defer {action.node}"


def amount(progress: Progress) -> str:
    """Return how far something is, in the unit that people read."""
    if progress.unit == "bytes":
        done, total = progress.done / 1e6, (progress.total or 0) / 1e6
        return f"{done:.0f} of {total:.0f} MB" if progress.total else f"{done:.0f} MB"
    if progress.unit in ("packages", "tokens", "answers") and progress.total:
        return f"{progress.done} of {progress.total} {progress.unit}"
    if progress.total:
        return f"{round(100 * progress.done / progress.total)} %"
    return str(progress.done or "")


def failure_text(event: ActionFailed | ActionSkipped) -> str:
    """Return what failed, why, the last log lines, and what to do next."""
    if isinstance(event, ActionSkipped):
        return f"{title(event.action)}: not tried, {title(event.because)} failed"
    lines = [f"{title(event.action)}: failed: {event.error}"]
    lines += [f"  | {line}" for line in event.error.log_tail]
    if event.error.next_step:
        lines.append(f"  next: {suggest(*event.error.next_step)}")
    return "\n".join(lines)
