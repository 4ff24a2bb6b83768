"""I/O: `status` and `logs`: what runs, and what it said."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.main import program_name
from orchestrator.cli.options import conf_option, controller, directories, print_json, run, suggest
from orchestrator.cluster import Cluster
from orchestrator.controller import Controller
from orchestrator.observed import ObservedUnit, Unreachable
from orchestrator.planned import Seen
from orchestrator.status import StackStatus, shown_problems, status_data, status_lines
from orchestrator.watching.report import living_watcher
from schemas.base import StackName
from schemas.problems import nearest


@click.command()
@click.argument("stack", required=False)
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def status(stack: str | None, conf: Path | None, as_json: bool) -> int:
    """Show what runs and whether it is well; without STACK, of every stack that was applied here.

    Of a role with several rungs, `*` marks who would be asked now. Exits with 4 where a node cannot be reached.
    """
    names = [stack] if stack is not None else _applied_stacks()
    if not names and not as_json:
        click.echo(f"Nothing was applied on this machine yet. Try: {suggest('up', 'quickstart')}")
    code = ExitCode.FINE
    for name in names:
        control = controller(conf, name)
        seen = run(control.look())
        for line in shown_status(control, seen) if not as_json else ():
            click.echo(line)
        for data in status_data(stack_status(control, seen)) if as_json else ():
            print_json(data)
        if any(isinstance(node, Unreachable) for node in seen.observed.nodes.values()):
            code = ExitCode.PARTIAL
    return code


@click.command()
@click.argument("stack")
@click.argument("unit", required=False)
@conf_option
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=50, show_default=True, help="The last so many lines."
)
@click.option("--follow", "-f", is_flag=True, help="Go on until the unit, or all of them, have ended.")
def logs(stack: str, unit: str | None, conf: Path | None, lines: int, follow: bool) -> None:
    """Print a unit's log. UNIT is a service, a slot like chat-0.0, or a unit id; without it, all units in turn."""
    run(_copy_logs(controller(conf, stack), unit, lines, follow))


def _applied_stacks() -> list[str]:
    root = directories().state / "stacks"
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def stack_status(control: Controller, seen: Seen) -> StackStatus:
    """Return what is shown of a stack."""
    now, back = time.time(), seen.rolled_back
    return StackStatus(
        stack=control.stack,
        conf=str(control.conf),
        observed=seen.observed,
        now=now,
        pending=None if seen.plan is None else len(seen.plan.changes),
        problems=seen.problems,
        rolled_back=None if back is None else f"{back.git}, by generation {back.generation}",
        watcher=living_watcher(control.directories.watcher(control.stack), now),
    )


def shown_status(control: Controller, seen: Seen) -> Iterator[str]:
    """Yield the lines of `status`: what runs, and what to do next."""
    status = stack_status(control, seen)
    yield from status_lines(status)
    units, conf = status.observed.units(), str(control.conf)
    if status.rolled_back is not None:
        yield f"Rolled back to {status.rolled_back}: what runs is not made from the files in {conf}."
    owners = sorted({unit.owner for unit in units if unit.alive and unit.owner not in (None, conf)})
    if owners:
        yield from (
            f"It runs from {owner}; look with: {program_name()} --conf {owner} status {control.stack}"
            for owner in owners
        )
    elif problems := shown_problems(status):
        served = "; the gateway keeps its last good routes" if status.observed.gateway is not None else ""
        yield f"The files cannot be used{served}:"
        yield from (f"  {problem}" for problem in problems)
    elif status.pending and units:
        plural = "s" if status.pending != 1 else ""
        yield f"{status.pending} change{plural} pending; see: {suggest('plan', control.stack)}"
    if not seen.has_keys and not owners and any(unit.alive for unit in units):
        command = suggest("keys", "new", control.stack, "--scope", "inference")
        yield f"There is no key, so no client is let in: {command}"


async def _copy_logs(control: Controller, wanted: str | None, lines: int, follow: bool) -> None:
    seen = await control.look()
    units = seen.observed.units()
    chosen = [unit for unit in units if wanted is None or _is_called(unit, wanted)]
    if not chosen:
        names = sorted({unit.slot for unit in units})
        guess = nearest(wanted or "", names)
        hint = f" Did you mean '{guess}'?" if guess else f" There are: {', '.join(names) or 'none'}."
        if wanted is None:
            raise CommandError(ExitCode.ERROR, f"Stack {control.stack} has no units, and so no logs.")
        raise CommandError(ExitCode.ERROR, f"No unit of stack {control.stack} is called {wanted!r}.{hint}")
    cluster = control.cluster()
    if follow:
        chosen = [unit for unit in chosen if unit.alive] or chosen[-1:]
        prefixes = _prefixes(chosen)
        async with asyncio.TaskGroup() as group:
            for unit, prefix in zip(chosen, prefixes, strict=True):
                group.create_task(_copy_log(cluster, control.stack, unit, lines, follow, prefix))
        return
    for unit in chosen:
        if len(chosen) > 1:
            click.echo(f"==> {unit.node}/{unit.id} <==")
        await _copy_log(cluster, control.stack, unit, lines, follow, b"")


def _prefixes(units: list[ObservedUnit]) -> list[bytes]:
    """Return what each line of each unit begins with; nothing where there is only one."""
    if len(units) < 2:
        return [b""] * len(units)
    names = [f"{unit.node}/{unit.slot}" for unit in units]
    width = max(len(name) for name in names)
    return [f"{name:<{width}} | ".encode() for name in names]


async def _copy_log(
    cluster: Cluster, stack: StackName, unit: ObservedUnit, lines: int, follow: bool, prefix: bytes
) -> None:
    async with cluster.nodes[unit.node].shim.logs(stack, unit.id, lines=lines, follow=follow) as copied:
        async for line in copied:
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()


def _is_called(unit: ObservedUnit, name: str) -> bool:
    return name in (unit.id, unit.slot, unit.slot.rsplit("-", 1)[0])
