"""I/O: Ctrl-C, TERM or HUP while something is changed: once to stop in good order, twice to stop at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from orchestrator.cli.exits import CommandError, ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_at_interrupt() -> Iterator[asyncio.Event]:
    """Give an event that the first interrupt sets; the second one cancels the task that is in the context.

    The second ends the context with `CommandError`. Interrupts outside of it are as they were.
    """
    loop, task, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    is_impatient = False

    def interrupted() -> None:
        nonlocal is_impatient
        if not stop.is_set():
            stop.set()
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                click.echo("Interrupted: what has begun is brought to an end; once more to leave at once.", err=True)
        elif task is not None:
            is_impatient = True
            task.cancel()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # as nohup leaves HUP
    for number in caught:
        loop.add_signal_handler(number, interrupted)
    try:
        yield stop
    except asyncio.CancelledError:
        if not is_impatient or task is None:
            raise
        task.uncancel()
        message = "Interrupted in the middle of an action. Running it again is safe."
        raise CommandError(ExitCode.INTERRUPTED, message) from None
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
