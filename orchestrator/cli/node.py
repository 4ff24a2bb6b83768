"""I/O: the `node` commands: the machines themselves, before and beside any stack."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.discover import discover
from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.options import conf_option, directories, print_json, run, suggest
from orchestrator.cli.progress import PLAIN_STEP, amount
from orchestrator.execute import Progress, Report
from orchestrator.node.anchors import launch_daemon
from orchestrator.node.doctor import Examined, examine_all, install_anchor
from orchestrator.node.provision import ProvisionError, is_provisioned, provision
from orchestrator.node.site import SiteError, local_site, site_of
from orchestrator.node.trust import Offer, fetch, keep
from orchestrator.transport.base import NodeDiskFullError
from orchestrator.transport.choose import destination, known_hosts, transport_to
from orchestrator.transport.ssh import CONFIG_VARIABLE, SshTransport
from schemas.base import NodeName
from schemas.compose import read_nodes
from schemas.node import Node
from schemas.problems import ConfigurationError, Problem, nearest

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.group(cls=CommandGroup)
def node() -> None:
    """Look after the machines: find them, trust their host keys, examine them, install what units need."""


node.add_command(discover)


@node.command()
@click.argument("name", metavar="NODE")
@conf_option
@json_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--replace", is_flag=True, help="Also where other keys were trusted before.")
def trust(name: str, conf: Path | None, as_json: bool, yes: bool, replace: bool) -> int:
    """Show the host keys of a node and trust them from now on.

    Compare the fingerprints with what the machine itself says, over another way than this network:
    ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
    """
    chosen, found = _node(conf, name)
    if found.reach != "ssh":
        raise CommandError(ExitCode.ERROR, f"{chosen} has reach: {found.reach}; only nodes behind ssh have host keys.")
    path = Path(known_hosts(directories()))
    offer = run(fetch(destination(chosen, found), path, os.environ.get(CONFIG_VARIABLE) or None))
    _show_offer(chosen, found, offer, as_json)
    if offer.is_known:
        return _trusted(chosen, as_json, "unchanged", f"The keys of {chosen} are trusted already.")
    if offer.changed() and not replace:
        raise CommandError(
            ExitCode.ERROR,
            f"Nothing was changed. If {chosen} was reinstalled, and only then: "
            f"{suggest('node', 'trust', chosen, '--replace')}",
        )
    if not yes:
        _confirm(f"Trust {'these keys instead' if offer.changed() else 'them'}?", as_json)
    keep(offer, path)
    transport = transport_to(chosen, found, directories())
    if isinstance(transport, SshTransport):
        run(transport.close())  # what is connected now is whoever had the keys before
    return _trusted(chosen, as_json, "trusted", f"The keys of {chosen} are trusted: {path}")


@node.command()
@click.argument("names", metavar="[NODE]...", nargs=-1)
@conf_option
@json_option
def doctor(names: tuple[str, ...], conf: Path | None, as_json: bool) -> int:
    """Examine nodes, all that have a file if none is named; says what to do about what is wrong.

    Exits with 4 where a node cannot be reached, with 1 where something has failed.
    """
    found = _nodes(conf)
    chosen = {_known(name, found): found[_known(name, found)] for name in names} or found

    async def work() -> list[Examined]:
        examined = []
        async for each in examine_all(chosen, directories()):
            _show_examined(each, as_json)
            examined.append(each)
        return examined

    examined = run(work())
    for name, each in chosen.items():
        if each.reach == "none" and not as_json:
            click.echo(f"{name}\n  {_MARKS['ok']}  no commands are run there (reach: none)")
    if not all(each.is_reached for each in examined):
        return ExitCode.PARTIAL
    return ExitCode.FINE if all(each.is_well for each in examined) else ExitCode.ERROR


@node.command()
@click.argument("name", metavar="NODE")
@conf_option
@json_option
def install(name: str, conf: Path | None, as_json: bool) -> int:
    """Install what units need on a node, ahead of an apply: the packages, and who keeps units after a logout.

    On Linux the user manager is told to linger. On macOS a LaunchDaemon is installed, by which units may dial the local
    network (unverified). Where that takes a password, the command is printed.
    """
    chosen, found = _node(conf, name)
    if found.reach == "none":
        raise CommandError(ExitCode.ERROR, f"{chosen} has reach: none; nothing can be installed there.")
    return run(_install(chosen, found, as_json))


async def _install(name: NodeName, node: Node, as_json: bool) -> int:
    transport = transport_to(name, node, directories())
    try:
        site = local_site(directories()) if node.reach == "local" else await site_of(transport)
        was_there = await is_provisioned(transport, site)
        with _progress(as_json) as report:
            await provision(transport, site, report)
        is_done, words = (
            (True, "units on this machine are parented by their own double fork")
            if site.is_local
            else await install_anchor(transport, site, launch_daemon(site) if site.os == "macos" else None)
        )
    except (ProvisionError, SiteError, NodeDiskFullError) as error:
        raise CommandError(ExitCode.ERROR, str(error)) from error
    outcome = "unchanged" if was_there else "installed"
    if as_json:
        line = {"type": "result", "node": name, "outcome": outcome, "supervision_is_done": is_done}
        print_json({**line, "supervision": words})
        return ExitCode.FINE
    click.echo(f"{name}: {'was provisioned already' if was_there else 'provisioned'}")
    click.echo(f"{name}: {words}" if is_done else f"{name}: run this there, so that units outlive a logout:\n  {words}")
    return ExitCode.FINE


@contextmanager
def _progress(as_json: bool) -> Iterator[Report]:
    """Give something that shows how far an installation is: a bar on a terminal, lines elsewhere."""
    if not as_json and sys.stdout.isatty():
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=30),
            bars.TextColumn("{task.fields[words]}"),
        )
        with bars.Progress(*columns, bars.TimeElapsedColumn(), transient=True) as shown:
            task = shown.add_task("", total=None, words="")
            yield lambda at: shown.update(
                task, description=at.phase, completed=at.done, total=at.total, words=amount(at)
            )
        return
    last: dict[str, float] = {}

    def line(at: Progress) -> None:
        share = at.done / at.total if at.total else 0.0
        if share - last.get(at.phase, -PLAIN_STEP) < PLAIN_STEP and not share >= 1.0 > last.get(at.phase, 0.0):
            return
        last[at.phase] = share
        if as_json:
            print_json({"type": "progress", "phase": at.phase, "done": at.done, "total": at.total, "unit": at.unit})
        else:
            click.echo(f"{at.phase} {amount(at)}".rstrip())

    yield line


def _nodes(conf: Path | None) -> dict[NodeName, Node]:
    root = click.get_current_context().find_root()
    root.obj = conf or root.obj

    async def read() -> dict[NodeName, Node]:  # `run` turns what is wrong with the files into the command's failure
        return dict(await asyncio.to_thread(read_nodes, root.obj))

    return run(read())


def _node(conf: Path | None, name: str) -> tuple[NodeName, Node]:
    found = _nodes(conf)
    return _known(name, found), found[_known(name, found)]


def _known(name: str, found: dict[NodeName, Node]) -> NodeName:
    if name in found:
        return NodeName(name)
    conf = click.get_current_context().find_root().obj
    message = f"no node is called {name!r}; there are: {', '.join(sorted(found)) or 'none'}"
    problem = Problem(file=str(conf / "nodes"), message=message, suggestion=nearest(name, found))
    raise CommandError(ExitCode.INVALID, str(ConfigurationError([problem])))


def _show_offer(name: NodeName, node: Node, offer: Offer, as_json: bool) -> None:
    changed = offer.changed()
    if as_json:
        for key in offer.shown:
            line = {"type": "host key", "node": name, "kind": key.kind, "fingerprint": key.fingerprint}
            trusted = [old.fingerprint for old in offer.trusted if old.kind == key.kind]
            print_json({**line, "trusted": trusted[0] if trusted else None, "changed": bool(changed)})
        return
    if changed:
        click.echo(f"WARNING: the host keys of {name} have CHANGED since they were trusted.", err=True)
        click.echo("A reinstalled machine looks like this, and so does somebody who listens in between.", err=True)
        for old, new in changed:
            click.echo(f"  was   {_kind(old.kind):<8} {old.fingerprint}", err=True)
            click.echo(f"  now   {_kind(new.kind):<8} {new.fingerprint}", err=True)
        return
    click.echo(f"{name} ({node.host or name}) shows these host keys:")
    for key in offer.shown:
        click.echo(f"  {_kind(key.kind):<8} {key.fingerprint}")
    if not offer.is_known:
        click.echo("The machine itself says them with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")


def _kind(kind: str) -> str:
    return kind.removeprefix("ssh-").removeprefix("ecdsa-sha2-").upper()


def _trusted(name: NodeName, as_json: bool, outcome: str, text: str) -> int:
    if as_json:
        print_json({"type": "result", "node": name, "outcome": outcome})
    else:
        click.echo(text)
    return ExitCode.FINE


def _confirm(question: str, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        message = "Nothing was changed: there is no terminal to ask on. Add --yes to go ahead."
        raise CommandError(ExitCode.ERROR, message)
    if not click.confirm(question, default=False):
        raise CommandError(ExitCode.ERROR, "Nothing was changed.")


def _show_examined(examined: Examined, as_json: bool) -> None:
    if as_json:
        checks = [asdict(check) for check in examined.checks]
        print_json({"type": "node", "node": examined.name, "reached": examined.is_reached, "checks": checks})
        return
    click.echo(examined.name)
    for check in examined.checks:
        click.echo(f"  {_MARKS[check.verdict]}  {check.name:<12} {check.found}")
        if check.mend:
            click.echo(f"  {'':<18} -> {check.mend}")
