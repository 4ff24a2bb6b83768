"""I/O: `requests` and `errors`: what the gateway answered and what went wrong, also before its last start."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import as_applied, complete_stack, conf_option, print_json, run, suggest
from orchestrator.gateway_api import GatewayError, gateway_api
from orchestrator.past import error_lines, request_lines
from schemas.history import PastErrors, PastRequests

Command = Callable[..., Any]


def _past_options(command: Command) -> Command:
    for decorate in (
        click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, the newest first."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line, the oldest first."),
        conf_option,
        click.option(
            "--status", type=click.IntRange(100, 599), metavar="STATUS", help="Only those whose clients got this."
        ),
        click.option("--role", metavar="ROLE", help="Only those of this role, alias, service or model."),
        click.option(
            "--lines", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="The last so many."
        ),
        click.argument("stack", shell_complete=complete_stack),
    ):
        command = decorate(command)
    return command


@click.command()
@_past_options
def requests(
    stack: str, lines: int, role: str | None, status: int | None, conf: Path | None, as_json: bool, as_csv: bool
) -> int:
    """Show the last requests: who answered, how many tokens, how quickly.

    They outlive the gateway's process, and hold nothing of what was asked or answered. Why a request went its way is in
    `receipts STACK ID`.
    """
    raw = _get(stack, conf, "/requests", lines, role, status, as_csv)
    if as_csv:
        click.echo(raw, nl=False)
        return ExitCode.FINE
    found = PastRequests.model_validate_json(raw).requests
    if as_json:
        for each in reversed(found):
            print_json({"type": "request", "stack": stack, **each.model_dump(mode="json")})
    elif found:
        click.echo("\n".join(request_lines(found, _clock)))
    else:
        click.echo("No such request is kept." if role or status else "No request was answered yet.")
    return ExitCode.FINE


@click.command()
@_past_options
def errors(
    stack: str, lines: int, role: str | None, status: int | None, conf: Path | None, as_json: bool, as_csv: bool
) -> int:
    """Show the last errors of endpoints, also those that another endpoint made good, and how many are alike.

    They outlive the gateway's process. A status of 200 means that the client noticed nothing.
    """
    raw = _get(stack, conf, "/errors", lines, role, status, as_csv)
    if as_csv:
        click.echo(raw, nl=False)
        return ExitCode.FINE
    found = PastErrors.model_validate_json(raw)
    if as_json:
        for each in reversed(found.errors):
            print_json({"type": "error", "stack": stack, **each.model_dump(mode="json")})
        for group in found.groups:
            print_json({"type": "alike", "stack": stack, **group.model_dump(mode="json")})
    elif found.errors:
        click.echo("\n".join(error_lines(found.errors, found.groups, _clock, time.time())))
    else:
        click.echo("No such error is kept." if role or status else "No error was seen yet.")
    return ExitCode.FINE


def _get(
    stack: str, conf: Path | None, path: str, lines: int, role: str | None, status: int | None, as_csv: bool
) -> str:
    control, composed = as_applied(conf, stack)
    query = {"limit": str(lines), "format": "csv" if as_csv else "json"}
    query |= {name: str(value) for name, value in (("role", role), ("status", status)) if value is not None}
    try:
        return run(gateway_api(composed, control.cluster()).get(path, query)).decode()
    except GatewayError as error:
        hint = "" if error.status else f" See: {suggest('status', stack)}"
        raise CommandError(ExitCode.ERROR, f"{error}{hint}") from error


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
