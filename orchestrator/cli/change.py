"""I/O: `plan`, `apply`, `up` and `down`: what would change, and changing it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.ask import QUESTION, NoAnswerError, ask, ask_encoder, curl_line, role_to_ask
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.interrupts import stop_at_interrupt
from orchestrator.cli.options import (
    conf_option,
    controller,
    note,
    planning_options,
    policy,
    print_json,
    run,
    suggest,
    without_lost_option,
)
from orchestrator.cli.progress import printer
from orchestrator.controller import Controller
from orchestrator.gateway_api import client_url, gateway_api
from orchestrator.plan import PLAN_VERSION, plan_data, render
from orchestrator.planned import Planned
from orchestrator.readiness import ClientMaker
from orchestrator.reconcile import EVERYTHING
from schemas.stack import KeysFile

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=1), default=None, help="Give up after so many seconds."
)


@click.command()
@planning_options
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Save the plan for `apply FILE`.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@timeout_option
def plan(control: Controller, as_json: bool, out: Path | None, detailed_exitcode: bool, timeout: float | None) -> int:
    """Show what apply would do. Changes nothing."""
    planned = run(control.plan(), timeout)
    print_plan(planned, as_json)
    if out is not None:
        _save(out, control, planned)
    if planned.plan.conflicts:
        return ExitCode.ERROR
    if planned.plan.is_partial:
        return ExitCode.PARTIAL
    return ExitCode.PENDING if detailed_exitcode and not planned.plan.is_empty else ExitCode.FINE


@click.command()
@planning_options
@yes_option
@timeout_option
def apply(control: Controller, as_json: bool, yes: bool, timeout: float | None) -> int:
    """Make what runs be what the stack says.

    STACK may be a plan saved with `plan --out FILE`; one that is no longer what would be done is refused.
    """
    saved = Path(control.stack)
    if saved.suffix in (".plan", ".json") and not control.has_file() and not saved.exists():
        message = f"{saved}: no such file; save a plan with: {suggest('plan', 'STACK', '--out', str(saved))}"
        raise CommandError(ExitCode.USAGE, message)
    if control.has_file() or not saved.is_file():
        return run(_apply(control, as_json, yes), timeout)
    if control.overrides or control.policy != EVERYTHING:
        message = f"{saved} is a saved plan: its overrides are in it, and its options; none can be added."
        raise CommandError(ExitCode.USAGE, message)
    control, expected = _load(saved)
    return run(_apply(control, as_json, yes, expected), timeout)


@click.command()
@planning_options
@yes_option
@timeout_option
def up(control: Controller, as_json: bool, yes: bool, timeout: float | None) -> int:
    """Apply, wait until ready, ask the stack one question."""

    async def work() -> int:
        code = await _apply(control, as_json, yes)
        return code if code != ExitCode.FINE else await _ask(control, as_json)

    return run(work(), timeout)


@click.command()
@click.argument("stack")
@conf_option
@without_lost_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@yes_option
@timeout_option
def down(
    stack: str, conf: Path | None, assume_lost: tuple[str, ...], as_json: bool, yes: bool, timeout: float | None
) -> int:
    """Stop everything that runs of a stack. Models stay in the store."""
    control = controller(conf, stack, policy=policy((), assume_lost))

    async def work() -> int:
        async with control.lock(f"down {stack}", waits=note):
            planned = await control.plan_down()
            if planned.plan.is_empty and not planned.plan.conflicts:
                last = next(control.journal.latest(), None)
                if last is not None and last.command != "down":  # a watcher that waits to start something ends by it
                    await control.apply(planned, lambda _: None, "down")
                _say(f"Nothing of stack {stack} is running.", as_json, {"type": "result", "outcome": "unchanged"})
                return ExitCode.FINE
            return await confirm_and_execute(control, planned, as_json, yes, "down")

    return run(work(), timeout)


async def _apply(control: Controller, as_json: bool, yes: bool, expected: str | None = None) -> int:
    control.compose()  # bad files are reported before anything is locked or asked
    async with control.lock(f"apply {control.stack}", waits=note):
        planned = await control.plan()
        if expected is not None and planned.plan.fingerprint() != expected:
            print_plan(planned, as_json)
            raise CommandError(
                ExitCode.STALE, "The saved plan is stale: the plan above is what would be done now. Save it again."
            )
        if planned.plan.is_empty and not planned.plan.conflicts:
            print_plan(planned, as_json)
            await control.allot(planned)
            if as_json:
                print_json({"type": "result", "outcome": "unchanged"})
            return ExitCode.FINE
        return await confirm_and_execute(control, planned, as_json, yes)


async def confirm_and_execute(
    control: Controller,
    planned: Planned,
    as_json: bool,
    yes: bool,
    command: str = "apply",
    before: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Show a plan, ask, do it, and say how it ended.

    `command` is what the journal calls it; `before` is done once it was agreed to.
    """
    print_plan(planned, as_json)
    if planned.plan.conflicts:
        return ExitCode.ERROR
    if not yes:
        await _confirm(as_json)
    if before is not None:
        await before()
    with stop_at_interrupt() as stop, printer(as_json) as shown:
        outcome = await control.apply(planned, shown.emit, command, stop=stop)
    if outcome.was_interrupted:
        message = (
            f"Interrupted: {len(outcome.done)} done, {len(outcome.failed)} cut short, {len(outcome.skipped)} not tried."
        )
        raise CommandError(ExitCode.INTERRUPTED, message + " Running it again is safe.")
    if not outcome.is_complete or planned.plan.is_partial:
        message = (
            f"Partly applied: {len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.skipped)} not tried."
        )
        raise CommandError(ExitCode.PARTIAL, message + " Running it again is safe.")
    done = "Everything is stopped." if not planned.desired.units else f"Applied generation {planned.generation}."
    _say(done, as_json, {"type": "result", "outcome": "applied", "generation": planned.generation})
    return ExitCode.FINE


async def _confirm(as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise CommandError(
            ExitCode.ERROR, "Nothing was changed: there is no terminal to ask on. Add --yes to go ahead."
        )
    click.echo("Make these changes? [y/N]: ", nl=False)
    if (await _line()).strip().lower() not in ("y", "yes"):
        raise CommandError(ExitCode.ERROR, "Nothing was changed.")


async def _line() -> str:
    """Return a line from the terminal. Waits on the loop: a thread that reads could not be interrupted."""
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline()


async def _ask(control: Controller, as_json: bool) -> int:
    stack = control.compose().stack
    gateway = gateway_api(stack, control.cluster())
    role, kind = role_to_ask(stack)
    is_keyed = isinstance(stack.gateway.auth, KeysFile)
    try:
        if kind == "chat":
            question, said = QUESTION, await _ask_chat(gateway.client, gateway.url, role, as_json)
        else:
            question, said = await ask_encoder(gateway.client, gateway.url, role, kind)
            if not as_json:
                click.echo(f"\nYou        {question}\n{role:<10} {said}", nl=False)
    except NoAnswerError as error:
        message = (
            f"\nThe stack is up but did not answer: {error}\nSee: {suggest('receipts', stack.stack, '--troubled')}"
        )
        raise CommandError(ExitCode.ERROR, message) from error
    url = client_url(stack)
    if as_json:
        print_json({"type": "answer", "role": role, "question": question, "answer": said, "gateway": url})
        return ExitCode.FINE
    click.echo(
        f"\n\nGateway    {url}/v1 (OpenAI API), {url}/health, {url}/metrics\n"
        + (f"Key        {suggest('keys', 'new', stack.stack, '--scope', 'inference')}\n" if is_keyed else "")
        + f"Try        {curl_line(url, role, kind, is_keyed=is_keyed)}\n"
        f"Status     {suggest('status', stack.stack)}\n"
        f"Stop       {suggest('down', stack.stack)}" + (" (or: make stop)" if stack.stack == "quickstart" else "")
    )
    return ExitCode.FINE


async def _ask_chat(make: ClientMaker, url: str, role: str, as_json: bool) -> str:
    if not as_json:
        click.echo(f"\nYou        {QUESTION}\n{role:<10} ", nl=False)
    pieces = []
    async for piece in ask(make, url, role, QUESTION):
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    return "".join(pieces)


def print_plan(planned: Planned, as_json: bool) -> None:
    """Print a plan for people, or as JSON lines."""
    if as_json:
        for line in plan_data(planned.plan):
            click.echo(json.dumps(line))
    else:
        click.echo(render(planned.plan, planned.heading()))


def _say(text: str, as_json: bool, line: dict[str, Any]) -> None:
    if as_json:
        print_json(line)
    else:
        click.echo(text)


def _save(path: Path, control: Controller, planned: Planned) -> None:
    body = {
        "version": PLAN_VERSION,
        "type": "saved plan",
        "stack": control.stack,
        "conf": str(control.conf),
        "overrides": list(control.overrides),
        "targets": list(control.policy.targets),
        "assume_lost": sorted(control.policy.assume_lost),
        "fingerprint": planned.plan.fingerprint(),
    }
    path.write_text(json.dumps(body, indent=2) + "\n")
    click.echo(f"Saved to {path}; apply it with: {suggest('apply', str(path))}", err=True)


def _load(path: Path) -> tuple[Controller, str]:
    try:
        body = json.loads(path.read_text())
        if body["type"] != "saved plan" or body["version"] != PLAN_VERSION:
            raise ValueError(f"expected a saved plan of version {PLAN_VERSION}")
        chosen = policy(tuple(body["targets"]), tuple(body["assume_lost"]))
        control = controller(Path(body["conf"]), str(body["stack"]), tuple(body["overrides"]), chosen)
        return control, str(body["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        hint = f"; a stack is named without its path: {suggest('apply', path.stem)}" if path.suffix == ".yaml" else ""
        raise CommandError(ExitCode.USAGE, f"{path} is no plan saved with `plan --out`: {error}{hint}") from error
