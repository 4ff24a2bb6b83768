"""I/O: `drain`: instances taken out of the routes, for work on their machine, and put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from orchestrator.cli.change import confirm_and_execute, print_plan, timeout_option, yes_option
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import conf_option, controller, note, policy, print_json, run, without_lost_option
from orchestrator.controller import Controller
from orchestrator.drain import drain_plan
from orchestrator.plan import Drain, Plan
from schemas.unit import slot_of


@click.command()
@click.argument("stack")
@click.argument("name", metavar="NODE|SERVICE|SLOT|UNIT")
@conf_option
@click.option("--undo", is_flag=True, help="Put back what is ready.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@yes_option
@timeout_option
@without_lost_option
def drain(
    stack: str,
    name: str,
    conf: Path | None,
    undo: bool,
    as_json: bool,
    yes: bool,
    timeout: float | None,
    assume_lost: tuple[str, ...],
) -> int:
    """Take instances out of the routes and wait until nothing is in flight there; they go on running.

    They stay out, whatever is applied or restarted, until --undo or `down`.
    """
    control = controller(conf, stack, policy=policy((), assume_lost))

    async def work() -> int:
        words = f"drain {name} --undo" if undo else f"drain {name}"
        async with control.lock(f"drain {stack} {name}", waits=note):
            planned = await control.plan_of(await control.wanted_as_applied())
            desired, plan = drain_plan(planned.desired, planned.observed, name, undo=undo, policy=control.policy)
            planned = replace(planned, desired=desired, plan=plan)
            if plan.conflicts:
                raise CommandError(ExitCode.ERROR, "\n".join((*plan.conflicts, "Nothing was changed.")))
            if plan.is_empty:
                print_plan(planned, as_json)
                return ExitCode.FINE
            code = await confirm_and_execute(control, planned, as_json, yes, words)
            await _say_what_is_left(control, plan, as_json)
            return code

    return run(work(), timeout)


async def _say_what_is_left(control: Controller, plan: Plan, as_json: bool) -> None:
    """Tell what is still in flight on the drained instances after their time."""
    drained = {action.unit for action in plan.actions if isinstance(action, Drain)}
    if not drained:
        return
    observed = (await control.look()).observed
    reports = observed.gateway.endpoints if observed.gateway is not None else ()
    for instance in observed.routes.instances if observed.routes is not None else ():
        left = sum(report.in_flight for report in reports if report.url.rstrip("/") == instance.url)
        if instance.unit not in drained or not left:
            continue
        place = f"{instance.node}/{slot_of(instance.unit)}"
        if as_json:
            print_json({"type": "in flight", "node": instance.node, "unit": instance.unit, "count": left})
        else:
            click.echo(f"{place}: {left} request{'s' if left != 1 else ''} still in flight when its time was over.")
