"""The program, run inside of a test."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.cli.main import main


async def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the program; return its exit code and what it printed."""
    capsys.readouterr()
    code = await asyncio.to_thread(main, list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err
