"""I/O: `models pull|ls|sync|verify|rm`: the models of a stack in the stores of its nodes, and in this machine's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.model_words import (
    checking,
    in_use,
    short,
    show_checked,
    show_pulled,
    show_table,
    size_text,
    unknown,
)
from orchestrator.cli.options import complete_stack, conf_option, controller, directories, print_json, run, suggest
from orchestrator.cli.progress import printer
from orchestrator.cluster import Cluster, reach
from orchestrator.controller import Controller
from orchestrator.models.errors import StoreError
from orchestrator.models.fleet import HERE, Checked, Failure, NodeModels, Use, bring_all, look, stored, verify_all
from orchestrator.models.node_store import StoredModel
from orchestrator.models.sources import PathSource, parse_source
from orchestrator.models.store import Store
from orchestrator.models.sync import ModelSync, models_here
from orchestrator.models.wishes import Need, needs
from schemas.base import NodeName, StackName
from schemas.compose import compose, stack_names
from schemas.node import Node
from schemas.problems import ConfigurationError

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
stack_argument = click.argument("stack", shell_complete=complete_stack)


@click.group(cls=CommandGroup)
def models() -> None:
    """Fetch, list, send, check and remove models."""


@models.command()
@stack_argument
@click.argument("model", required=False)
@conf_option
@json_option
@click.option("--update", is_flag=True, help="Ask the hub what unpinned revisions mean now.")
def pull(stack: str, model: str | None, conf: Path | None, as_json: bool, update: bool) -> int:
    """Fetch the models of a stack into this machine's store; apply and sync send them from here."""
    control = controller(conf, stack)
    return _run(_pull(control, model, as_json, update))


@models.command()
@click.argument("stack", required=False, shell_complete=complete_stack)
@conf_option
@json_option
def ls(stack: str | None, conf: Path | None, as_json: bool) -> int:
    """List the models of a stack and the nodes that have them; without STACK, what is in this machine's store."""
    if stack is None:
        return _run(_list_here(as_json))
    return _run(_list(controller(conf, stack), as_json))


@models.command()
@stack_argument
@click.argument("node", required=False)
@conf_option
@json_option
def sync(stack: str, node: str | None, conf: Path | None, as_json: bool) -> int:
    """Bring the models of a stack to the nodes that need them, or to one. Only files that differ are sent."""
    return _run(_sync(controller(conf, stack), node, as_json))


@models.command()
@stack_argument
@click.argument("model", required=False)
@conf_option
@json_option
@click.option("--mend", is_flag=True, help="Bring damaged and missing files again.")
def verify(stack: str, model: str | None, conf: Path | None, as_json: bool, mend: bool) -> int:
    """Check every file of a stack's models on every node by its checksum.

    Exits with 1 where a file is damaged or a model is missing, with 4 where a node cannot be asked.
    """
    return _run(_verify(controller(conf, stack), model, as_json, mend))


@models.command()
@click.argument("model")
@conf_option
@json_option
@click.option("--form", type=click.Choice(["mlx", "original"]), help="Only this form of it.")
@click.option("--stack", default=None, shell_complete=complete_stack, help="Also on every node of this stack.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(model: str, conf: Path | None, as_json: bool, form: str | None, stack: str | None, yes: bool) -> int:
    """Remove a model from this machine's store, in all its revisions; what a unit uses stays.

    MODEL is its name in a model file, or its source, such as hub:org/name. Nothing in a `path:` is ever removed.
    """
    root = click.get_current_context().find_root()
    root.obj = conf or root.obj
    return _run(_remove(model, controller(conf, stack) if stack else None, root.obj, form, as_json, yes))


# -- the work ----------------------------------------------------------------------------------------------------------


async def _pull(control: Controller, model: str | None, as_json: bool, update: bool) -> int:
    wanted = [need for need in _needed(await _needs(control), model) if not _is_path(need)]
    cluster = control.cluster()
    before = models_here(cluster.store, [need.wish for need in wanted])
    jobs = [(HERE, need.wish) for need in wanted if update or need.wish not in before]
    failed = await _bring(cluster, jobs, as_json, update=update)
    now = models_here(cluster.store, [need.wish for need in wanted])
    for need in wanted:
        if (installed := now.get(need.wish)) is not None and installed.manifest is not None:
            show_pulled(control.stack, need, installed, before.get(need.wish), as_json)
    if not wanted and not as_json:
        click.echo(f"Stack {control.stack} needs no models from elsewhere.")
    return ExitCode.ERROR if failed else ExitCode.FINE


async def _list(control: Controller, as_json: bool) -> int:
    wanted = await _needs(control)
    cluster = control.cluster()
    here = await asyncio.to_thread(models_here, cluster.store, [need.wish for need in wanted])
    seen = await look(cluster.nodes, [need.wish for need in wanted])
    rows = [("MODEL", "FORM", "REVISION", "SIZE", "NODES", "IN USE BY")]
    for need in wanted:
        wish, installed = need.wish, here.get(need.wish)
        found = {name: node for name, node in seen.items() if isinstance(node, NodeModels)}
        has = [name for name, node in found.items() if node.listing.find(wish.model, wish.form, installed)]
        entries = [stored(found[name].listing, wish, installed) for name in has]
        manifest = installed.manifest if installed is not None else None
        entry = next((each for each in entries if each is not None), None)
        revision = manifest.revision if manifest else entry.manifest.revision if entry else wish.model.revision
        size = manifest.size if manifest else entry.size if entry else None
        uses = sorted({use.unit for node in found.values() for use in node.uses if use.wish == wish})
        if as_json:
            line: dict[str, Any] = {
                "type": "model",
                "stack": control.stack,
                "model": wish.model.name,
                "source": wish.model.source,
            }
            line |= {"form": wish.form, "revision": revision, "size_bytes": size, "nodes": has}
            line |= {"needed_by": list(need.nodes), "here": installed is not None, "used_by": uses}
            print_json(line)
        rows.append(
            (
                wish.model.name,
                wish.form,
                "path" if _is_path(need) else short(revision),
                size_text(size),
                ", ".join([*has, *(f"{name} lacks it" for name in need.nodes if name in found and name not in has)]),
                ", ".join(unit.split("@")[0] for unit in uses) or "-",
            )
        )
    if not as_json:
        show_table(rows)
    return _unreachable(seen, as_json)


async def _list_here(as_json: bool) -> int:
    store, seen = await _here()
    rows = [("SOURCE", "FORM", "REVISION", "SIZE", "IN USE BY")]
    for model in seen.listing.models:
        uses, manifest = seen.users(model), model.manifest
        forms = "+".join(model.forms)
        if as_json:
            line: dict[str, Any] = {"type": "stored", "source": manifest.source, "forms": list(model.forms)}
            line |= {"revision": manifest.revision, "requested": manifest.requested, "size_bytes": model.size}
            line |= {"path": model.path, "whole": model.is_whole, "installed_at": manifest.installed_at}
            print_json({**line, "used_by": [{"stack": use.stack, "unit": use.unit} for use in uses]})
        users = ", ".join(sorted({f"{use.stack}/{use.unit.split('@')[0]}" for use in uses})) or "-"
        state = "" if model.is_whole else " (damaged)"
        rows.append((manifest.source, forms, short(manifest.revision), size_text(model.size) + state, users))
    if not as_json:
        show_table(rows)
        if len(rows) == 1:
            click.echo(f"There are no models in {store.root} yet.")
    return ExitCode.FINE


async def _sync(control: Controller, node: str | None, as_json: bool) -> int:
    wanted = await _needs(control)
    cluster = control.cluster()
    if node is not None and node not in cluster.nodes:
        start = f"Stack {control.stack} has no node that commands reach called"
        raise CommandError(ExitCode.USAGE, unknown(start, node, cluster.nodes))
    jobs = [
        (name, need.wish) for need in wanted for name in need.nodes if name in cluster.nodes and node in (None, name)
    ]
    failed = await _bring(cluster, jobs, as_json)
    if as_json:
        print_json({"type": "result", "outcome": "partial" if failed else "synced", "models": len(jobs) - failed})
    elif failed:
        done = f"{len(jobs) - failed} of {len(jobs)} models are in place."
        click.echo(f"{done} Running it again goes on where it ended.", err=True)
    else:
        click.echo(f"{len(jobs)} of {len(jobs)} models are in place.")
    return ExitCode.PARTIAL if failed else ExitCode.FINE


async def _verify(control: Controller, model: str | None, as_json: bool, mend: bool) -> int:
    wanted = _needed(await _needs(control), model)
    cluster = control.cluster()
    seen = await look(cluster.nodes, [need.wish for need in wanted])
    with checking(as_json) as report:
        checked = await verify_all(cluster, seen, wanted, report)
    for each in checked:
        show_checked(control.stack, each, as_json)
    bad = [each for each in checked if each.damaged is None or each.damaged]
    if not checked and not as_json:
        click.echo("There is nothing with checksums: no node has such a model yet, or users look after them (path:).")
    if bad and mend:
        return await _mend(control, cluster, seen, bad, as_json)
    if bad and not as_json:
        click.echo(f"Bring them again: {suggest('models', 'verify', control.stack, '--mend')}", err=True)
    return ExitCode.ERROR if bad else _unreachable(seen, as_json)


async def _mend(
    control: Controller,
    cluster: Cluster,
    seen: Mapping[NodeName, NodeModels | Failure],
    bad: Sequence[Checked],
    as_json: bool,
) -> int:
    for each in bad:
        node = seen[each.node]
        if each.model is not None and each.damaged and isinstance(node, NodeModels):
            await node.store.drop(each.model, each.damaged)
    failed = await _bring(cluster, [(each.node, each.wish) for each in bad], as_json)
    users = sorted({use.unit for each in bad if each.model is not None for use in _users(seen[each.node], each.model)})
    if users and not failed and not as_json:
        slots = sorted({unit.split("@")[0] for unit in users})
        click.echo(f"In use while it was damaged: {', '.join(slots)}; restart: {suggest('restart', control.stack)}")
    return ExitCode.PARTIAL if failed else ExitCode.FINE


async def _remove(
    model: str, control: Controller | None, conf: Path, form: str | None, as_json: bool, yes: bool
) -> int:
    nodes = await _stores(control)
    sources = await asyncio.to_thread(_sources_called, conf, model)
    reached = {name: node for name, node in nodes.items() if isinstance(node, NodeModels)}
    found = [
        (name, node, entry)
        for name, node in reached.items()
        for entry in node.listing.models
        if entry.manifest.source in sources and (form is None or form in entry.forms)
    ]
    if not found:
        known = sorted({entry.manifest.source for node in reached.values() for entry in node.listing.models})
        raise CommandError(ExitCode.ERROR, unknown("No model is stored that is called", model, known))
    _refuse_used(nodes, found)
    if not as_json:
        for name, _, entry in found:
            what = f"{entry.manifest.source} ({'+'.join(entry.forms)}) {short(entry.manifest.revision)}"
            click.echo(f"  - {name}/{what} {size_text(entry.size)}")
    if not yes:
        _confirm(as_json)
        _refuse_used(await _stores(control), found)  # the question may have stood there for long
    for name, node, entry in found:
        await node.store.remove(entry)
        if as_json:
            line: dict[str, Any] = {
                "type": "removed",
                "node": name,
                "source": entry.manifest.source,
                "forms": list(entry.forms),
            }
            print_json({**line, "revision": entry.manifest.revision, "size_bytes": entry.size})
    if not as_json:
        click.echo(f"Removed {size_text(sum(entry.size for _, _, entry in found))}.")
    return _unreachable(nodes, as_json)


async def _stores(control: Controller | None) -> Mapping[NodeName, NodeModels | Failure]:
    """Look at this machine's store, and at those of a stack's other nodes."""
    here: Mapping[NodeName, NodeModels | Failure] = {HERE: (await _here())[1]}
    if control is None:
        return here
    others = {name: node for name, node in control.cluster().nodes.items() if not node.is_local}
    return {**here, **await look(others, [])}


def _refuse_used(
    nodes: Mapping[NodeName, NodeModels | Failure], found: Sequence[tuple[NodeName, NodeModels, StoredModel]]
) -> None:
    """Raise `CommandError` where a unit has loaded what is to be removed."""
    for name, _, entry in found:
        if uses := _users(nodes[name], entry):
            raise CommandError(ExitCode.ERROR, in_use(name, entry, uses))


# -- what they share ---------------------------------------------------------------------------------------------------


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return run(work)
    except StoreError as error:
        raise CommandError(ExitCode.ERROR, str(error)) from error


async def _needs(control: Controller) -> tuple[Need, ...]:
    desired = (await control.wanted()).desired
    return needs(unit.spec for unit in desired.units.values())


def _needed(wanted: Sequence[Need], model: str | None) -> list[Need]:
    chosen = [need for need in wanted if model in (None, need.wish.model.name)]
    if model is not None and not chosen:
        names = {need.wish.model.name for need in wanted}
        raise CommandError(ExitCode.USAGE, unknown("No service of this stack uses a model called", model, names))
    return chosen


async def _here() -> tuple[Store, NodeModels]:
    """Return this machine's store and what is in it."""
    places = directories()
    nodes = reach(StackName("none"), {HERE: Node(reach="local")}, places).nodes
    seen = (await look(nodes, []))[HERE]
    if not isinstance(seen, NodeModels):
        raise seen
    return Store(places.cache), seen


async def _bring(cluster: Cluster, jobs: Sequence[tuple[NodeName, Any]], as_json: bool, *, update: bool = False) -> int:
    with printer(as_json) as shown:
        return await bring_all(cluster, ModelSync(cluster.store), jobs, shown.emit, update=update)


def _sources_called(conf: Path, name: str) -> frozenset[str]:
    """Return the sources that a name means: itself, and those of the models of that name in any stack's files."""
    found = {name}
    for stack in stack_names(conf):
        try:
            known = compose(conf, stack).stack.models
        except ConfigurationError:
            continue  # what cannot be read names nothing
        found |= {model.source for key, model in known.items() if key == name}
    return frozenset(found)


def _users(node: NodeModels | Failure, model: StoredModel) -> tuple[Use, ...]:
    return node.users(model) if isinstance(node, NodeModels) else ()


def _confirm(as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        message = "Nothing was removed: there is no terminal to ask on. Add --yes to go ahead."
        raise CommandError(ExitCode.ERROR, message)
    if not click.confirm("Remove them?"):
        raise CommandError(ExitCode.ERROR, "Nothing was removed.")


def _unreachable(seen: Mapping[NodeName, NodeModels | Failure], as_json: bool) -> ExitCode:
    failed = {name: error for name, error in seen.items() if not isinstance(error, NodeModels)}
    for name, error in failed.items():
        if as_json:
            print_json({"type": "node", "node": name, "reachable": False, "reason": str(error)})
        else:
            click.echo(f"{name} could not be asked: {error}", err=True)
    return ExitCode.PARTIAL if failed else ExitCode.FINE


def _is_path(need: Need) -> bool:
    return isinstance(parse_source(need.wish.model.source), PathSource)
