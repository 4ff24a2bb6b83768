"""I/O: `status` and `logs`: what runs, and what it said."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.main import program_name
from orchestrator.cli.options import conf_option, controller, directories, print_json, run, suggest
from orchestrator.controller import Controller, Seen
from orchestrator.helpers.compare import describe, helper_data
from orchestrator.observed import ObservedUnit, Unreachable
from schemas.problems import Problem, nearest


@click.command()
@click.argument("stack", required=False)
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def status(stack: str | None, conf: Path | None, as_json: bool) -> int:
    """Show what runs and whether it is well; without STACK, of every stack that was applied here.

    Exits with 4 where a node cannot be reached.
    """
    names = [stack] if stack is not None else _applied_stacks()
    if not names and not as_json:
        click.echo(f"Nothing was applied on this machine yet. Try: {suggest('up', 'quickstart')}")
    code = ExitCode.FINE
    for name in names:
        control = controller(conf, name)
        seen = run(control.look())
        for line in _status_lines(control, seen) if not as_json else ():
            click.echo(line)
        if as_json:
            _print_status(name, seen)
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
@click.option("--follow", "-f", is_flag=True, help="Go on until the unit ends.")
def logs(stack: str, unit: str | None, conf: Path | None, lines: int, follow: bool) -> None:
    """Print a unit's log. UNIT is a service, a slot like chat-0.0, or a unit id; without it, all units in turn."""
    run(_copy_logs(controller(conf, stack), unit, lines, follow))


def _applied_stacks() -> list[str]:
    root = directories().state / "stacks"
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _problems(seen: Seen) -> tuple[Problem, ...]:
    gateway = seen.observed.gateway
    return seen.problems or (gateway.problems if gateway is not None else ())


def _status_lines(control: Controller, seen: Seen) -> Iterator[str]:
    observed, gateway = seen.observed, seen.observed.gateway
    at = f", generation {observed.routes.generation}" if observed.routes else ""
    revision = f" at {observed.routes.revision}" if observed.routes and observed.routes.revision else ""
    yield f"Stack {control.stack}{at}{revision}"
    units = observed.units()
    for unit in units:
        yield "  " + _unit_line(unit)
    for name, node in observed.nodes.items():
        if isinstance(node, Unreachable):
            yield f"  {name} cannot be reached: {node.reason}"
    for helper, what in observed.helpers.items():
        yield f"  helper {describe(helper, what)}"
    if not units:
        yield "  nothing runs"
    if gateway is not None:
        for endpoint in gateway.endpoints:
            is_well = endpoint.state == "ready" and all(unit.ready for unit in units)  # then its last error is over
            error = f", last error: {endpoint.last_error}" if endpoint.last_error and not is_well else ""
            yield f"  role {endpoint.role}: {endpoint.name} is {endpoint.state}, {endpoint.in_flight} in flight{error}"
    if (back := seen.rolled_back) is not None:
        yield f"Generation {back.generation} rolled back to {back.git}: what runs are not the files in {control.conf}."
    owners = sorted({unit.owner for unit in units if unit.alive and unit.owner not in (None, str(control.conf))})
    if owners:
        yield from (
            f"It runs from {owner}; look with: {program_name()} --conf {owner} status {control.stack}"
            for owner in owners
        )
    elif problems := _problems(seen):
        served = "; the gateway keeps its last good routes" if gateway is not None else ""
        yield f"The files cannot be used{served}:"
        yield from (f"  {problem}" for problem in problems)
    elif seen.plan is not None and not seen.plan.is_empty and units:
        count = len(seen.plan.changes)
        plural = "s" if count != 1 else ""
        yield f"{count} change{plural} pending; see: {suggest('plan', control.stack)}"


def _unit_line(unit: ObservedUnit) -> str:
    name = f"{unit.node}/{unit.slot}"
    if not unit.alive:
        return f"{name:<24} ended    {unit.exit or unit.phase}"
    state = "ready" if unit.ready else "not ready"
    up_s = max(0, time.time() - unit.started_at) if unit.started_at else 0
    port = f", port {unit.port}" if unit.port else ""
    return f"{name:<24} {state:<8} pid {unit.pid}{port}, up {_duration(up_s)}"


def _duration(seconds: float) -> str:
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def _print_status(name: str, seen: Seen) -> None:
    observed = seen.observed
    for unit in observed.units():
        print_json(
            {
                "type": "unit",
                "stack": name,
                "node": unit.node,
                "unit": unit.id,
                "slot": unit.slot,
                "alive": unit.alive,
                "ready": unit.ready,
                "pid": unit.pid,
                "port": unit.port,
                "started_at": unit.started_at,
                "exit": unit.exit,
            }
        )
    for node, what in observed.nodes.items():
        if isinstance(what, Unreachable):
            print_json({"type": "node", "stack": name, "node": node, "reachable": False, "reason": what.reason})
    for helper, seen_helper in observed.helpers.items():
        print_json({"type": "helper", "stack": name, "helper": helper, **helper_data(seen_helper)})
    gateway = observed.gateway
    print_json(
        {
            "type": "status",
            "stack": name,
            "generation": observed.routes.generation if observed.routes else None,
            "gateway": gateway.model_dump(mode="json") if gateway is not None else None,
            "problems": [problem.model_dump(mode="json") for problem in _problems(seen)],
            "changes_pending": None if seen.plan is None else len(seen.plan.changes),
        }
    )


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
    if follow and len(chosen) > 1:
        slots = sorted({unit.slot for unit in chosen})
        if len(slots) > 1:
            raise CommandError(ExitCode.USAGE, f"One unit can be followed at a time; name one of: {', '.join(slots)}.")
        chosen = [unit for unit in chosen if unit.alive][-1:] or chosen[-1:]
    cluster = control.cluster()
    for unit in chosen:
        if len(chosen) > 1:
            click.echo(f"==> {unit.node}/{unit.id} <==")
        shim = cluster.nodes[unit.node].shim
        async with shim.logs(control.stack, unit.id, lines=lines, follow=follow) as copied:
            async for line in copied:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()


def _is_called(unit: ObservedUnit, name: str) -> bool:
    return name in (unit.id, unit.slot, unit.slot.rsplit("-", 1)[0])
