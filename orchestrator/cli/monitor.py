"""I/O: `monitor`: `status`, again and again."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path

import click

from orchestrator.cli.exits import ExitCode
from orchestrator.cli.observe import shown_status, stack_status
from orchestrator.cli.options import conf_option, controller, print_json, run
from orchestrator.controller import Controller
from orchestrator.status import status_data

_DRIFTING = re.compile(r"[\d.]+ (s|min|h|d|ms|Gb/s|MiB|GiB|tokens/s)\b")
"""Figures that are others at every look: ages, rates and memory alone are no news."""


@click.command()
@click.argument("stack")
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--every", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option("--count", "-n", type=click.IntRange(min=1), default=None, help="End after so many looks.")
def monitor(stack: str, conf: Path | None, as_json: bool, every: float, count: int | None) -> int:
    """Show how a stack is until interrupted: redrawn on a terminal, printed when it changes elsewhere."""
    control = controller(conf, stack)
    run(
        _redraw(control, every, count)
        if sys.stdout.isatty() and not as_json
        else _print(control, every, count, as_json)
    )
    return ExitCode.FINE


async def _redraw(control: Controller, every: float, count: int | None) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        seen = 0
        while count is None or seen < count:
            lines = list(shown_status(control, await control.look()))
            head = f"{time.strftime('%H:%M:%S')}  every {every:g} s; end with Ctrl-C"
            live.update(Text("\n".join([head, *lines])), refresh=True)
            seen += 1
            await asyncio.sleep(every)


async def _print(control: Controller, every: float, count: int | None, as_json: bool) -> None:
    """Print everything at each look as JSON; as text only what was not there at the look before."""
    before: set[str] = set()
    looks = 0
    while True:
        seen = await control.look()
        if as_json:
            for data in status_data(stack_status(control, seen)):
                print_json({"at": round(time.time(), 3), **data})
        else:
            lines = {_DRIFTING.sub("", line): line for line in shown_status(control, seen)}
            for key, line in lines.items():
                if key not in before:
                    click.echo(f"{time.strftime('%H:%M:%S')}  {line.strip()}")
            before = set(lines)
        looks += 1
        if looks == count:
            return
        await asyncio.sleep(every)
