"""I/O: `history` and `rollback`: what was applied, and going back to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.change import confirm_and_execute, print_plan, timeout_option, yes_option
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import (
    assume_lost_option,
    conf_option,
    controller,
    note,
    policy,
    print_json,
    run,
    suggest,
)
from orchestrator.columns import columns
from orchestrator.controller import Controller
from orchestrator.journal import Generation, Journal, known_numbers
from orchestrator.node.client import ShimError
from orchestrator.rollback import RollbackError
from orchestrator.transport.base import TransportError


@click.command()
@click.argument("stack")
@click.argument("number", metavar="[N]", type=click.IntRange(min=1), required=False)
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--lines", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="The last so many.")
@click.option("--audit", is_flag=True, help="What was done on each node, as the nodes recorded it.")
def history(stack: str, number: int | None, conf: Path | None, as_json: bool, lines: int, audit: bool) -> int:
    """Show what was applied, latest first; with N, one generation in full.

    What a watcher has done is part of it.
    """
    control = controller(conf, stack)
    if audit:
        return run(_print_audit(control, lines, as_json))
    if number is not None:
        _print_generation(_found(control.journal, stack, number), as_json)
        return ExitCode.FINE
    found = list(islice(control.journal.latest(), lines))
    if not found and not as_json:
        click.echo(f"Nothing of stack {stack} was applied on this machine yet.")
    if as_json:
        for generation in found:
            print_json({"type": "generation", **dataclasses.asdict(generation)})
    else:
        for line in _table(found):
            click.echo(line)
    return ExitCode.FINE


@click.command()
@click.argument("stack")
@click.argument("number", metavar="N", type=click.IntRange(min=1))
@conf_option
@assume_lost_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@yes_option
@timeout_option
def rollback(
    stack: str,
    number: int,
    conf: Path | None,
    assume_lost: tuple[str, ...],
    as_json: bool,
    yes: bool,
    timeout: float | None,
) -> int:
    """Apply the files and overrides of generation N again, as a new generation. `history` lists them.

    Your files are left as they are: what runs differs from them until the next `apply`, which returns to them.
    """
    control = controller(conf, stack, policy=policy((), assume_lost))

    async def work() -> int:
        async with control.lock(f"rollback {stack} {number}", waits=note):
            try:
                planned = await control.plan_rollback(number)
            except RollbackError as error:
                raise CommandError(ExitCode.ERROR, str(error)) from error
            if planned.plan.is_empty and not planned.plan.conflicts:
                print_plan(planned, as_json)
                await control.allot(planned)
                if as_json:
                    print_json({"type": "result", "outcome": "unchanged"})
                return ExitCode.FINE
            code = await confirm_and_execute(control, planned, as_json, yes, f"rollback to {number}")
            if planned.desired.files is not None and not as_json:
                click.echo(
                    f"The files in {control.conf} are not what runs now; "
                    f"{suggest('apply', stack)} returns to them, {suggest('plan', stack)} shows how."
                )
            return code

    return run(work(), timeout)


def _found(journal: Journal, stack: str, number: int) -> Generation:
    found = journal.find(number)
    if found is None:
        known = known_numbers(journal.latest()) or "none"
        raise CommandError(ExitCode.ERROR, f"Stack {stack} has no generation {number}. There are: {known}.")
    return found


def _table(found: list[Generation]) -> Iterator[str]:
    """Yield a line for each generation, in columns."""
    if not found:
        return
    rows = [("", "when", "who", "revision", "what", "outcome", "changes")]
    rows += [
        (
            str(each.generation),
            _when(each.at),
            each.actor,
            each.git.short or "-",
            " ".join((each.command, *each.overrides)),
            each.outcome,
            str(len(each.changes)),
        )
        for each in found
    ]
    yield from columns(rows)


def _print_generation(generation: Generation, as_json: bool) -> None:
    if as_json:
        print_json({"type": "generation", **dataclasses.asdict(generation)})
        return
    took = f" in {generation.duration_s:.1f} s" if generation.duration_s is not None else ""
    click.echo(f"Generation {generation.generation}: {generation.command}, {generation.outcome}{took}")
    rows: list[tuple[str, str]] = [
        ("when", _when(generation.at)),
        ("who", generation.actor),
        ("files", f"{generation.owner} at {generation.git}"),
    ]
    rows += [("override", text) for text in generation.overrides]
    rows += [("change", text) for text in generation.changes]
    rows += [("failed", text) for text in generation.failures]
    for name, text in rows:
        click.echo(f"  {name:<9} {text}")


async def _print_audit(control: Controller, lines: int, as_json: bool) -> int:
    """Print what the nodes recorded, oldest first; exits with 4 where a node cannot be asked."""
    code = ExitCode.FINE
    entries: list[dict[str, Any]] = []
    for name, node in control.cluster().nodes.items():
        try:
            entries += [{**line, "node": name} for line in await node.shim.audit(control.stack, lines)]
        except (TransportError, ShimError) as error:
            note(f"{name} cannot be asked: {error}")
            code = ExitCode.PARTIAL
    for entry in sorted(entries, key=lambda entry: float(entry.get("time", 0)))[-lines:]:
        if as_json:
            print_json({**entry, "type": "audit"})
            continue
        who = entry.get("actor") or "-"
        generation = f"generation {entry['generation']}" if entry.get("generation") is not None else "-"
        what = f"{entry['node']}/{entry['unit']}" if entry.get("unit") else str(entry["node"])
        shown = [
            _when(float(entry.get("time", 0))),
            str(entry.get("verb")),
            what,
            who,
            generation,
            entry.get("outcome"),
        ]
        click.echo("  ".join(str(word) for word in shown))
    return code


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
