"""I/O: `probe`: what is the matter with a stack's helpers or with a group's links, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import click

from orchestrator.addresses import AddressError
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.options import (
    complete_stack,
    conf_option,
    controller,
    invalid,
    print_json,
    run,
    stack_options,
)
from orchestrator.cluster import ReachedNode
from orchestrator.expand import expand
from orchestrator.helpers.compare import describe, helper_data
from orchestrator.helpers.probe import Probed
from orchestrator.helpers.probe import probe as probe_helpers
from orchestrator.link_verdict import is_well, outcome_data, render
from orchestrator.links import NoPortsError, probe_links
from orchestrator.readiness import client
from orchestrator.transport.base import NodeTransport
from schemas.base import HelperName, NodeName
from schemas.node import Node
from schemas.problems import ConfigurationError
from schemas.stack import Helper, Stack
from schemas.unit import GroupSpec, WorkerSpec


@click.group(cls=CommandGroup)
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


@probe.command()
@click.argument("stack", shell_complete=complete_stack)
@click.argument("service", required=False)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="How long the stress test runs."
)
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def links(stack: str, service: str | None, seconds: float, conf: Path | None, as_json: bool) -> int:
    """Test the links between the ranks of a group: right sums, latency, bandwidth, and all of it under stress.

    Runs a small program on every node, on free ports, beside whatever serves. Without SERVICE every sharded service is
    tested in turn. Exits with 1 where a group fails, with 4 where a node cannot be reached.
    """
    control = controller(conf, stack)
    try:
        composed = control.compose().stack
    except ConfigurationError as error:
        raise invalid(error) from error
    groups = _groups(composed, control.conf)
    if service is not None and service not in groups:
        known = f"sharded services: {', '.join(groups)}" if groups else "the stack has no sharded service"
        raise click.UsageError(f"{service} is not a sharded service of {stack}; {known}.")
    if not groups:
        raise click.UsageError(f"Stack {stack} has no sharded service, so there are no links to test.")
    reached = control.cluster().nodes
    fine = True
    for name, group in groups.items():
        if service in (None, name):
            fine &= _test_group(stack, name, group, composed.nodes, reached, seconds, as_json)
    return ExitCode.FINE if fine else ExitCode.ERROR


def _groups(stack: Stack, owner: Path) -> dict[str, GroupSpec]:
    specs = [unit.spec for unit in expand(stack, str(owner)).units.values()]
    return {
        spec.service: spec.group
        for spec in specs
        if isinstance(spec, WorkerSpec) and spec.group is not None and (spec.replica, spec.rank) == (0, 0)
    }


def _test_group(
    stack: str,
    service: str,
    group: GroupSpec,
    declared: Mapping[NodeName, Node],
    reached: Mapping[NodeName, ReachedNode],
    seconds: float,
    as_json: bool,
) -> bool:
    try:
        outcomes, findings = run(probe_links(group, declared, reached, seconds))
    except (AddressError, NoPortsError) as error:
        raise CommandError(ExitCode.ERROR, f"services.{service}: {error}") from error
    if as_json:
        ranks = [outcome_data(outcome) for outcome in outcomes]
        found = [dataclasses.asdict(finding) for finding in findings]
        line = {"type": "links", "stack": stack, "service": service, "well": is_well(findings)}
        print_json({**line, "ranks": ranks, "findings": found})
    else:
        title = f"{service}: {group.size} ranks over {group.backend}"
        click.echo("\n".join(render(title, outcomes, findings)))
    return is_well(findings)
