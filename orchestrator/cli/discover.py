"""I/O: `node discover`: drafts node files of the machines that announce themselves on the local network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.options import conf_option, note, print_json, run, suggest
from orchestrator.node.announced import Machine, machines
from orchestrator.node.discover import DiscoveryError, listen, this_machine
from schemas.base import NodeName
from schemas.compose import read_nodes
from schemas.node import Node

_NOBODY = (
    "Nobody announced ssh or a workstation. Macs do with Remote Login on, Linux hosts where Avahi has ssh.service."
    " Announcements stay within one network: they pass no router, and often no VPN, guest Wi-Fi or firewall (UDP 5353)."
)


@click.command()
@conf_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="How long to listen, 0.1 to 60."
)
@click.option("--write", is_flag=True, help="Write a node file for each new machine; none is ever replaced.")
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="ADDRESS",
    help="Listen where this machine has this address.  Repeatable.  [default: everywhere]",
)
def discover(conf: Path | None, as_json: bool, seconds: float, write: bool, interfaces: tuple[str, ...]) -> int:
    """Listen for machines that announce ssh (mDNS) and draft their node files.

    Never needed: a node file can as well be written by hand. An announcement is nobody's word but the sender's, so
    look at what was drafted; `node trust` is what tells machines apart.

    Needs a package: pip install 'orchestrate[discover]'
    """
    root = click.get_current_context().find_root()
    root.obj = conf or root.obj
    directory: Path = root.obj / "nodes"
    found = run(_listen(root.obj, seconds, interfaces, needs_directory=write, is_quiet=as_json))
    written = {each.name: _write(directory, each) for each in found if each.is_new} if write else {}
    for each in found:
        if as_json:
            _print_line(directory, each, written)
        else:
            click.echo(
                f"{each.host or each.title:<28} {' '.join(each.addresses[:1]):<16} {each.os or '':<6} {_state(each)}"
            )
    if as_json:
        files = [str(_file(directory, name)) for name, is_written in written.items() if is_written]
        new = sum(each.is_new for each in found)
        print_json({"type": "result", "found": len(found), "new": new, "written": files})
        return ExitCode.FINE
    _print_drafts(directory, [each for each in found if each.is_new], written, is_asked=write)
    if not found:
        note(_NOBODY)
    return ExitCode.FINE


async def _listen(
    conf: Path, seconds: float, interfaces: Sequence[str], *, needs_directory: bool, is_quiet: bool
) -> tuple[Machine, ...]:
    nodes: Mapping[NodeName, Node] = {}
    if needs_directory or (conf / "nodes").is_dir():
        nodes = await asyncio.to_thread(read_nodes, conf)
    if not is_quiet:
        note(f"Listening for {seconds:g} s...")
    try:
        announcements = await listen(seconds, interfaces)
    except DiscoveryError as error:
        raise CommandError(ExitCode.ERROR, str(error)) from error
    return machines(announcements, nodes, this_machine())


def _draft(directory: Path, machine: Machine) -> str:
    from orchestrator.cli.files import node_file

    lines = [f"Announced itself as {machine.title!r}; look at this before a stack names it:"]
    lines += [f"- {sentence}" for sentence in machine.checks()]
    comment = "".join(f"# {line}\n" for line in lines)
    return node_file(directory, machine.name, machine.content(), comment)


def _write(directory: Path, machine: Machine) -> bool:
    """Write a node file; returns False where there is a file of that name, of whatever content."""
    path = _file(directory, machine.name)
    text = _draft(directory, machine)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _file(directory: Path, name: NodeName) -> Path:
    return directory / f"{name}.yaml"


def _state(machine: Machine) -> str:
    if machine.known is not None:
        return f"known: {machine.name} (by its {machine.known})"
    if machine.is_here:
        return "this machine"
    return f"new: {machine.name}" if machine.is_new else "without an address that others reach"


def _print_line(directory: Path, machine: Machine, written: Mapping[NodeName, bool]) -> None:
    state = "known" if machine.known else "here" if machine.is_here else "new" if machine.is_new else "unreachable"
    line: dict[str, Any] = {
        "type": "machine",
        "node": machine.name,
        "state": state,
        "known_by": machine.known,
        "host": machine.host or None,
        "title": machine.title,
        "addresses": machine.addresses,
        "os": machine.os,
        "ssh_port": machine.ssh_port,
    }
    if machine.is_new:
        draft = {"file": str(_file(directory, machine.name)), "content": machine.content(), "checks": machine.checks()}
        line |= {**draft, "written": written.get(machine.name, False)}
    print_json(line)


def _print_drafts(directory: Path, new: list[Machine], written: Mapping[NodeName, bool], *, is_asked: bool) -> None:
    for each in new:
        path = _file(directory, each.name)
        outcome = "" if not is_asked else "  (written)" if written[each.name] else "  (left as it is: it was there)"
        click.echo(f"\n# {path}{outcome}\n{_draft(directory, each).rstrip()}")
    first = next((name for name, is_written in written.items() if is_written), None)
    if new and not is_asked:
        click.echo(f"\nTo write {'it' if len(new) == 1 else 'them'}: {suggest('node', 'discover', '--write')}")
    elif first is not None:
        click.echo(f"\nNext, once you have looked at it: {suggest('node', 'trust', first)}")
