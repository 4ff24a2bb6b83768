"""I/O: `breaker`: what the gateway knows of each endpoint, and its circuit breakers set by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from orchestrator.breakers import changed_line, endpoint_lines, has_answered, history_lines, probed_line
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.options import as_applied, complete_stack, conf_option, print_json, run, suggest
from orchestrator.gateway_api import GatewayApi, GatewayError, gateway_api
from schemas.admin import EndpointsReport, EndpointStatistics

Command = Callable[..., Any]

_PATH = "/admin/endpoints"


@click.group(cls=CommandGroup)
def breaker() -> None:
    """Show how endpoints do, take one out by hand, put it back, or try one now.

    What is isolated by hand stays so until `breaker close`, whatever is applied, and when the gateway is started again.
    It belongs to an address: a worker that takes the place of another one at another port gets requests.
    """


def _endpoint_options(command: Command) -> Command:
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
        conf_option,
        click.option("--instance", metavar="HOST:PORT", help="One of several replicas; without it, all of them."),
        click.option("--role", metavar="ROLE", help="Where several roles have an endpoint of that name."),
        click.argument("endpoint", metavar="ENDPOINT"),
        click.argument("stack", shell_complete=complete_stack),
    ):
        command = decorate(command)
    return command


@breaker.command("list")
@click.argument("stack", shell_complete=complete_stack)
@conf_option
@click.option("--history", is_flag=True, help="Also what each breaker did lately.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(stack: str, conf: Path | None, history: bool, as_json: bool) -> int:
    """Show each endpoint's health, breaker, latency, tokens a second, last answer and last error."""
    found = _ask(stack, conf, "GET", _PATH)
    if as_json:
        _print(stack, found)
        return ExitCode.FINE
    head, *lines = endpoint_lines(found)
    click.echo(head)
    for endpoint, line in zip(found, lines, strict=True):
        click.echo(line)
        for change in history_lines(endpoint) if history else ():
            click.echo(change)
    return ExitCode.FINE


@breaker.command()
@_endpoint_options
def isolate(stack: str, endpoint: str, role: str | None, instance: str | None, conf: Path | None, as_json: bool) -> int:
    """Give an endpoint no more requests and no more probes, until `breaker close`.

    Requests that it works at are not disturbed.
    """
    _set(stack, conf, "isolate", _choice(endpoint, role, instance), as_json)
    return ExitCode.FINE


@breaker.command()
@_endpoint_options
def close(stack: str, endpoint: str, role: str | None, instance: str | None, conf: Path | None, as_json: bool) -> int:
    """Close an endpoint's breaker, isolated or open, and forget its failures: it gets requests at once."""
    _set(stack, conf, "close", _choice(endpoint, role, instance), as_json)
    return ExitCode.FINE


@breaker.command()
@_endpoint_options
def probe(stack: str, endpoint: str, role: str | None, instance: str | None, conf: Path | None, as_json: bool) -> int:
    """Ask an endpoint for a token, a vector or a score now; an answer closes its breaker, unless it is isolated.

    Exits with 1 where it does not answer.
    """
    found = _ask(stack, conf, "POST", f"{_PATH}/probe", _choice(endpoint, role, instance))
    if as_json:
        _print(stack, found)
    else:
        for each in found:
            click.echo(probed_line(each))
    return ExitCode.FINE if all(has_answered(each) for each in found) else ExitCode.ERROR


def _set(stack: str, conf: Path | None, verb: str, choice: Mapping[str, str], as_json: bool) -> None:
    found = _ask(stack, conf, "POST", f"{_PATH}/{verb}", choice)
    if as_json:
        _print(stack, found)
    else:
        for each in found:
            click.echo(changed_line(each))


def _choice(endpoint: str, role: str | None, instance: str | None) -> dict[str, str]:
    """Return which endpoint is meant; `ROLE/ENDPOINT`, as `list` prints it, names the role as well."""
    if role is None and "/" in endpoint:
        role, _, endpoint = endpoint.partition("/")
    named = {"endpoint": endpoint, "role": role, "instance": instance}
    return {key: value for key, value in named.items() if value is not None}


def _ask(
    stack: str, conf: Path | None, method: str, path: str, choice: Mapping[str, str] | None = None
) -> tuple[EndpointStatistics, ...]:
    api = _api(stack, conf)

    async def work() -> bytes:
        return await (api.get(path) if method == "GET" else api.post(path, choice))

    try:
        return EndpointsReport.from_json(run(work())).endpoints
    except GatewayError as error:
        hint = "" if error.status else f" See: {suggest('status', stack)}"
        raise CommandError(ExitCode.ERROR, f"{error}{hint}") from error


def _api(stack: str, conf: Path | None) -> GatewayApi:
    """Return the way to a stack's gateway, as it was applied."""
    control, composed = as_applied(conf, stack)
    return gateway_api(composed, control.cluster())


def _print(stack: str, endpoints: tuple[EndpointStatistics, ...]) -> None:
    for endpoint in endpoints:
        print_json({"type": "endpoint", "stack": stack, **endpoint.model_dump(mode="json")})
