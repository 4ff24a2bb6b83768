"""I/O: `restart`: units stopped and started again as they are, and another try for what has failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from orchestrator.cli.change import confirm_and_execute, print_plan, timeout_option, yes_option
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import assume_lost_option, conf_option, controller, note, policy, print_json, run
from orchestrator.controller import Controller
from orchestrator.journal import actor
from orchestrator.node.client import ShimError
from orchestrator.plan import Plan, Start
from orchestrator.planned import Planned
from orchestrator.transport.base import TransportError


@click.command()
@click.argument("stack")
@click.argument("names", nargs=-1, metavar="[UNIT|SERVICE]...")
@conf_option
@assume_lost_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@yes_option
@timeout_option
def restart(
    stack: str,
    names: tuple[str, ...],
    conf: Path | None,
    assume_lost: tuple[str, ...],
    as_json: bool,
    yes: bool,
    timeout: float | None,
) -> int:
    """Stop units and start them again as they are; without names, try again what has failed.

    Their crashes so far count no more. A name is a service, a slot like chat-0.0, a node, or `gateway`.
    """
    control = controller(conf, stack, policy=policy((), assume_lost))

    async def work() -> int:
        async with control.lock(f"restart {stack} {' '.join(names)}".strip(), waits=note):
            wanted = await control.wanted_as_applied()
            chosen = names or _failed((await control.plan_of(wanted)).plan)
            if not chosen:
                text = f"Nothing of stack {stack} has failed. Name what to restart, such as a service."
                if not as_json:
                    click.echo(text)
                else:
                    print_json({"type": "result", "outcome": "unchanged", "message": text})
                return ExitCode.FINE
            planned = await control.plan_of(wanted, replace(control.policy, targets=chosen, restart=chosen))
            if planned.plan.is_empty and not planned.plan.conflicts:
                print_plan(planned, as_json)
                return ExitCode.FINE
            words = " ".join(("restart", *names))
            return await confirm_and_execute(
                control, planned, as_json, yes, words, before=lambda: _forgive(control, planned)
            )

    return run(work(), timeout)


def _failed(plan: Plan) -> tuple[str, ...]:
    """Return the targets that a plan starts no more."""
    return tuple(sorted({change.target for change in plan.changes if change.kind == "failed"}))


async def _forgive(control: Controller, planned: Planned) -> None:
    """Let the crashes so far of everything that is started count no more, so that the next ones have their backoff."""
    cluster = planned.cluster.signed(actor(), planned.generation)
    started = [placed.unit for action in planned.plan.actions if isinstance(action, Start) for placed in action.units]
    for name in sorted({unit.node for unit in started}):
        units = [unit.id for unit in started if unit.node == name]
        try:
            await cluster.nodes[name].shim.forgive(control.stack, units)
        except (ShimError, TransportError) as error:
            raise CommandError(ExitCode.PARTIAL, f"Nothing was restarted: {error}") from error
