"""What a command does when it is told to end while it changes something."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.interrupts import SIGNALS, stop_at_interrupt


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Heed all of them, also where the tests themselves are told to outlive their terminal."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
async def test_the_first_signal_asks_to_stop_and_the_second_leaves_at_once(number):
    before = signal.getsignal(number)

    async def work() -> None:
        with stop_at_interrupt() as stop:
            os.kill(os.getpid(), number)
            await asyncio.wait_for(stop.wait(), 10)
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)

    with pytest.raises(CommandError) as told:
        await asyncio.create_task(work())
    assert told.value.code == ExitCode.INTERRUPTED
    assert signal.getsignal(number) == before
