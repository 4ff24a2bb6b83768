"""I/O: `receipts`: how the gateway routed the last requests, and why not otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import as_applied, complete_stack, conf_option, print_json, run, suggest
from orchestrator.gateway_api import GatewayError, gateway_api
from schemas.receipt import Receipt, Receipts


@click.command()
@click.argument("stack", shell_complete=complete_stack)
@click.argument("request_id", metavar="[ID]", required=False)
@click.option(
    "--lines", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="The last so many requests."
)
@click.option("--troubled", is_flag=True, help="Only those that failed, took more than one attempt or fell back.")
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def receipts(stack: str, request_id: str | None, lines: int, troubled: bool, conf: Path | None, as_json: bool) -> int:
    """Show how the last requests were routed; with ID, of the header x-orchestrate-request-id, one of them in full.

    The gateway remembers the last thousand since its start, and nothing of what was asked or answered.
    """
    control, composed = as_applied(conf, stack)
    gateway = gateway_api(composed, control.cluster())
    try:
        if request_id is not None:
            raw = run(gateway.get(f"/admin/receipts/{quote(request_id, safe='')}"))
            found = [Receipt.model_validate_json(raw)]
        else:
            query = {"limit": str(lines), "troubled": "true" if troubled else "false"}
            found = list(Receipts.model_validate_json(run(gateway.get("/admin/receipts", query))).receipts)
    except GatewayError as error:
        hint = "" if error.status else f" See: {suggest('status', stack)}"
        raise CommandError(ExitCode.ERROR, f"{error}{hint}") from error
    for receipt in reversed(found):  # the newest at the bottom, where one looks
        if as_json:
            print_json({"type": "receipt", **receipt.model_dump(mode="json", exclude={"version"})})
        elif request_id is not None:
            click.echo("\n".join(told(receipt)))
        else:
            click.echo(line_of(receipt))
    if not found and not as_json:
        click.echo("No request was answered since the gateway started." if not troubled else "No troubled request.")
    return ExitCode.FINE


def line_of(receipt: Receipt) -> str:
    """Return one line about a request."""
    at = time.strftime("%H:%M:%S", time.localtime(receipt.at))
    way = " -> ".join(attempt.endpoint for attempt in receipt.attempts) or "nobody"
    fallback = f", fallback {receipt.fallback}" if receipt.fallback else ""
    return f"{at}  {receipt.id}  {receipt.model}  {receipt.outcome}  {receipt.took_s:.3f} s  {way}{fallback}"


def told(receipt: Receipt) -> Iterator[str]:
    """Yield the lines about a request in full."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(receipt.at))
    route = "" if receipt.route == receipt.model else f" (route {receipt.route})"
    yield f"{receipt.id}  {at}  {receipt.path}{' streamed' if receipt.is_stream else ''}"
    yield f"asked for    {receipt.model}{route}"
    yield f"outcome      {receipt.outcome} after {receipt.took_s:.3f} s"
    if receipt.fallback:
        yield f"fallback     {receipt.fallback}"
    for number, attempt in enumerate(receipt.attempts, 1):
        first = "" if attempt.first_s is None else f", first content at {attempt.first_s:.3f} s"
        error = f": {attempt.error}" if attempt.error else ""
        where = f" at {attempt.url}" if attempt.url else ""
        yield (
            f"attempt {number}    {attempt.endpoint}{where}, {attempt.began_s:.3f} to {attempt.ended_s:.3f} s{first}: "
            f"{attempt.outcome}{error}"
        )
        if attempt.emulated:
            yield f"             done in its place: {', '.join(attempt.emulated)}"
        if attempt.dropped:
            yield f"             left out for it: {', '.join(attempt.dropped)}"
    for over in receipt.passed_over:
        retry = "" if over.retry_s is None else f", free in {over.retry_s:.0f} s"
        yield f"not asked    {over.endpoint}: {over.reason}{': ' + over.detail if over.detail else ''}{retry}"
    revision = f", revision {receipt.revision}" if receipt.revision else ""
    yield f"routes       generation {receipt.generation}{revision}"
