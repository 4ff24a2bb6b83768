"""I/O: `probe nodes`: what is the matter with a stack's helpers, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import click

from orchestrator.cli.exits import ExitCode
from orchestrator.cli.options import controller, invalid, print_json, run, stack_options
from orchestrator.helpers.compare import describe, helper_data
from orchestrator.helpers.probe import Probed
from orchestrator.helpers.probe import probe as probe_helpers
from orchestrator.readiness import client
from orchestrator.transport.base import NodeTransport
from schemas.base import HelperName, NodeName
from schemas.problems import ConfigurationError
from schemas.stack import Helper


@click.group()
def probe() -> None:
    """Look closely at what does not work, and say what would mend it."""


@probe.command()
@stack_options
def nodes(stack: str, overrides: tuple[str, ...], conf: Path | None, as_json: bool) -> int:
    """Tell why helpers do not serve: loopback only, a firewall, a wrong port, another program, LAN privacy on macOS.

    Looks at the hosts of the stack's helpers only. Exits with 4 where one of them does not serve as declared.
    """
    control = controller(conf, stack, overrides)
    try:
        helpers = control.compose().stack.helpers
    except ConfigurationError as error:
        raise invalid(error) from error
    cluster = control.cluster()
    probed = run(_probe(helpers, {name: node.transport for name, node in cluster.nodes.items()}))
    for name, found in probed.items():
        if as_json:
            print_json(_line(stack, name, found))
            continue
        click.echo(describe(name, found.seen))
        for finding in found.findings:
            click.echo(f"  cause: {finding.cause}")
            click.echo(f"  mend:  {finding.mend}")
    if not probed and not as_json:
        click.echo(f"Stack {stack} has no helpers.")
    return ExitCode.FINE if all(found.is_well for found in probed.values()) else ExitCode.PARTIAL


async def _probe(
    helpers: Mapping[HelperName, Helper], transports: Mapping[NodeName, NodeTransport]
) -> Mapping[HelperName, Probed]:
    async with client() as http:
        return await probe_helpers(http, helpers, transports, os.environ)


def _line(stack: str, name: HelperName, found: Probed) -> dict[str, object]:
    findings = [dataclasses.asdict(finding) for finding in found.findings]
    return {
        "type": "helper",
        "stack": stack,
        "helper": name,
        "well": found.is_well,
        "seen": helper_data(found.seen),
        "findings": findings,
    }
