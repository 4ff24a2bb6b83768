"""I/O: `drill`: breaks an endpoint or a node's endpoints on purpose, for a moment, and tells what clients saw."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import as_applied, complete_stack, conf_option, print_json, run, suggest
from orchestrator.controller import Controller
from orchestrator.drill import (
    AFTER,
    BEFORE,
    BROKEN,
    Phase,
    UnknownTargetError,
    as_they_are,
    broken_by,
    data,
    is_passed,
    lines,
    out_words,
    roles_hit,
    unless_out,
)
from orchestrator.drill_clients import ask_for
from orchestrator.gateway_api import GatewayApi, GatewayError, gateway_api
from schemas.admin import EndpointsReport, EndpointStatistics
from schemas.kinds import role_kinds
from schemas.stack import Stack

SPARE_S = 30.0
"""How much longer than its part of the drill an endpoint stays broken where nobody mends it, such as after a crash."""


@click.command()
@click.argument("stack", shell_complete=complete_stack)
@click.argument("name", metavar="ENDPOINT|NODE")
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=10.0, show_default=True, help="How long each part lasts."
)
@click.option(
    "--clients",
    type=click.IntRange(1, 32),
    default=2,
    show_default=True,
    help="Clients of each role, at the same time.",
)
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def drill(stack: str, name: str, seconds: float, clients: int, conf: Path | None, as_json: bool) -> int:
    """Break an endpoint on purpose, or all endpoints of a node, and tell what clients saw.

    For a while every request that the gateway sends there fails as if its port was closed. Nothing is stopped; real
    requests of others are answered by whom theirs would be. It is mended at the end, and also by itself where this
    program is killed. Exits with 1 where a request failed.
    """
    control, composed = as_applied(conf, stack)
    try:
        return run(_drill(control, composed, name, seconds, clients, as_json))
    except GatewayError as error:
        hint = "" if error.status else f" See: {suggest('status', stack)}"
        raise CommandError(ExitCode.ERROR, f"{error}{hint}") from error
    except UnknownTargetError as error:
        raise CommandError(ExitCode.ERROR, str(error)) from error


async def _drill(control: Controller, stack: Stack, name: str, seconds: float, clients: int, as_json: bool) -> int:
    gateway = gateway_api(stack, control.cluster())
    broken = in_service(broken_by(name, await _endpoints(gateway), await _nodes(control, stack)), name, stack.stack)
    kinds = role_kinds(stack)
    roles = {role: kinds[role] for role in roles_hit(broken) if role in kinds}
    if not roles:
        raise CommandError(ExitCode.ERROR, f"No role leads to '{name}', so no client could notice.")
    phases = [Phase(BEFORE), Phase(BROKEN), Phase(AFTER)]
    failure: GatewayError | None = None
    for phase in phases:
        if not as_json:
            click.echo(f"{phase.name}: clients ask {', '.join(roles)} for {seconds:g} s", err=True)
        if phase.name != BROKEN:
            await ask_for(gateway, roles, phase, seconds, clients)
            continue
        # What was taken out since is as little the drill's as what was out before.
        broken = in_service(as_they_are(broken, await _endpoints(gateway)), name, stack.stack)
        try:
            for each in broken:
                await gateway.post("/admin/endpoints/break", {**_choice(each), "seconds": seconds + SPARE_S})
            await ask_for(gateway, roles, phase, seconds, clients)
        finally:
            failure = await mend(gateway, broken)
    if as_json:
        print_json({"stack": stack.stack, **data(name, broken, phases)})
    else:
        click.echo("\n".join(lines(name, broken, phases)))
    if failure is not None:
        raise failure
    return ExitCode.FINE if is_passed(phases) else ExitCode.ERROR


def in_service(found: Sequence[EndpointStatistics], name: str, stack: str) -> tuple[EndpointStatistics, ...]:
    """Return those that get requests, and tell which do not; raises `CommandError` where none does."""
    broken, out = unless_out(found)
    for each in out:
        click.echo(f"{each.endpoint} ({each.instance}) is {out_words(each)}: it is left alone.", err=True)
    if broken:
        return broken
    message = f"Nothing of '{name}' gets requests, so no client could notice."
    if out:
        verb = "close" if out[0].breaker.state == "isolated" else "probe"
        message += f" To put it back: {suggest('breaker', verb, stack, out[0].endpoint)}"
    raise CommandError(ExitCode.ERROR, message)


async def mend(gateway: GatewayApi, broken: tuple[EndpointStatistics, ...]) -> GatewayError | None:
    """Mend every endpoint that can be; return why the first of the others could not.

    One that somebody has isolated by hand meanwhile is left alone: what is broken of it ends by itself.
    """
    failures = []
    with contextlib.suppress(GatewayError):
        now = as_they_are(broken, await _endpoints(gateway))
        broken = tuple(each for each in now if each.breaker.state != "isolated")
    for each in broken:
        try:
            await gateway.post("/admin/endpoints/close", _choice(each))
        except GatewayError as error:
            failures.append(error)
    return failures[0] if failures else None


async def _endpoints(gateway: GatewayApi) -> tuple[EndpointStatistics, ...]:
    return EndpointsReport.model_validate_json(await gateway.get("/admin/endpoints")).endpoints


def _choice(each: EndpointStatistics) -> dict[str, str]:
    return {"endpoint": each.endpoint, "instance": each.instance, **({"role": each.role} if each.role else {})}


async def _nodes(control: Controller, stack: Stack) -> dict[str, str]:
    """Return the node of everything that the gateway can call, by host and port."""
    routes = (await control.look()).observed.routes
    found = {urlsplit(each.url).netloc: str(each.node) for each in (routes.instances if routes is not None else ())}
    helpers = stack.helpers.values()
    return found | {urlsplit(helper.url).netloc: str(helper.node) for helper in helpers if helper.node is not None}
