"""Pure: exit codes, and the failures that carry them. The codes are a contract with scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import click


class ExitCode(IntEnum):
    """What the program's exit code says."""

    FINE = 0
    ERROR = 1
    PENDING = 2
    INVALID = 3
    PARTIAL = 4
    LOCKED = 5
    STALE = 6
    USAGE = 64
    INTERRUPTED = 130


class CommandError(Exception):
    """A command's end with an exit code, a message for people and lines for `--json`."""

    def __init__(self, code: ExitCode, message: str, lines: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.lines = tuple(lines)

    def show(self, as_json: bool) -> None:
        """Print it: text to stderr, or JSON lines to stdout."""
        if not as_json:
            click.echo(self.message, err=True)
            return
        for line in self.lines:
            click.echo(json.dumps({"version": 1, **line}))
        click.echo(json.dumps({"version": 1, "type": "error", "exit_code": int(self.code), "message": self.message}))
