"""I/O: `watch`: keeps a stack as its files say until it is ended."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import assume_lost_option, conf_option, controller, policy, print_json, run
from orchestrator.controller import Controller
from orchestrator.node.client import LockedError
from orchestrator.scope import hint
from orchestrator.watching.source import StackDownError
from orchestrator.watching.watcher import Tell, Told, Watcher

WAIT_POLL_S = 5.0


@click.command()
@click.argument("stack")
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--wait", is_flag=True, help="Wait while another watcher watches the stack, instead of giving up.")
@assume_lost_option
def watch(stack: str, conf: Path | None, as_json: bool, wait: bool, assume_lost: tuple[str, ...]) -> int:
    """Keep a stack as its files say, until it is interrupted: edits, units that end, nodes that come back.

    What runs goes on when the watcher ends. `heal: true` in the stack lets `apply` start it as a unit of its own. A
    node that is assumed to be lost is so until it answers.
    """
    control = controller(conf, stack, policy=policy((), assume_lost))
    if assume_lost:
        known = control.cluster().nodes
        for name in sorted(control.policy.assume_lost - known.keys()):
            raise CommandError(ExitCode.ERROR, f"--assume-lost {name}: no node is called so{hint(name, known)}")

    def tell(told: Told) -> None:
        if as_json:
            print_json(
                {"type": "watch", "at": round(time.time(), 3), "event": told.kind, "text": told.text, **told.fields}
            )
        else:
            click.echo(f"{time.strftime('%H:%M:%S')}  {told.text}")

    try:
        return run(_watch(control, tell, wait))
    except StackDownError as end:
        tell(Told("ended", str(end)))
        return ExitCode.FINE


async def _watch(control: Controller, tell: Tell, wait: bool) -> int:
    """Watch until TERM, or until the stack is taken down; an interrupt ends it as it ends any command."""
    work = asyncio.create_task(_alone(control, tell, wait))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if me is not None and me.cancelling():
            raise
    return ExitCode.FINE


async def _alone(control: Controller, tell: Tell, wait: bool) -> None:
    """Watch as the only watcher of the stack."""
    if not control.directories.stack(control.stack).is_dir():
        control.compose()  # files that were never good have nothing to go on with
    is_told = False
    while True:
        try:
            async with control.only_watcher():
                await Watcher(control, tell).watch()
        except LockedError as error:
            who = f"{error.holder.get('actor')} (pid {error.holder.get('pid')})"
            if not wait:
                raise CommandError(ExitCode.LOCKED, f"Stack {control.stack} is watched already, by {who}.") from error
            if not is_told:
                tell(Told("note", f"waiting for the watcher of {who}"))
                is_told = True
            await asyncio.sleep(WAIT_POLL_S)
