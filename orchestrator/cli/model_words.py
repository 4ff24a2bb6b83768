"""I/O: how models are shown: rows of a table, lines for programs, sentences that say what to do next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from orchestrator.cli.options import print_json, suggest
from orchestrator.cli.progress import amount
from orchestrator.columns import columns
from orchestrator.execute import Progress
from orchestrator.models.fleet import Checked, Use
from orchestrator.models.node_store import StoredModel
from orchestrator.models.store import InstalledModel
from orchestrator.models.wishes import Need, is_pinned
from schemas.base import NodeName, StackName
from schemas.problems import nearest

REVISION_CHARS = 12
CheckReport = Callable[[NodeName, int, int], None]
"""Is given a node, and the bytes that were read there and are to be read."""


def show_pulled(
    stack: StackName, need: Need, now: InstalledModel, before: InstalledModel | None, as_json: bool
) -> None:
    """Say what a pull has changed."""
    assert now.manifest is not None  # noqa: S101 - only `path:` models have none
    model, manifest = need.wish.model, now.manifest
    earlier = before.manifest.revision if before is not None and before.manifest is not None else None
    outcome = "unchanged" if earlier == manifest.revision else "installed" if earlier is None else "updated"
    if as_json:
        line: dict[str, Any] = {"type": "pulled", "stack": stack, "model": model.name, "form": need.wish.form}
        line |= {"revision": manifest.revision, "before": earlier, "size_bytes": manifest.size, "outcome": outcome}
        print_json(line)
        return
    shown = f"{model.name} ({need.wish.form}) at {short(manifest.revision)}, {size_text(manifest.size)}"
    if outcome == "updated":
        click.echo(f"{shown}: was {short(earlier)}. Units that run keep the old one. To roll it out everywhere:")
        click.echo(f"  write `revision: {manifest.revision}` into the model file, then {suggest('apply', stack)}")
        return
    is_floating = not is_pinned(model) and outcome == "installed"
    pin = f"; pin it with `revision: {manifest.revision}`" if is_floating else ""
    click.echo(f"{shown}: {'is there' if outcome == 'unchanged' else 'installed'}{pin}")


def show_checked(stack: StackName, each: Checked, as_json: bool) -> None:
    """Say how a model stood up to its checksums."""
    if as_json:
        line: dict[str, Any] = {"type": "verified", "stack": stack, "node": each.node, "model": each.wish.model.name}
        line |= {"form": each.wish.form, "revision": each.model.manifest.revision if each.model else None}
        print_json({**line, "damaged": None if each.damaged is None else list(each.damaged)})
        return
    name = f"{each.node}/{each.wish.model.name} ({each.wish.form})"
    if each.model is None or each.damaged is None:
        click.echo(f"{name}: is missing")
    elif each.damaged:
        click.echo(f"{name}: damaged: " + ", ".join(f"{each.model.path}/{file}" for file in each.damaged))
    else:
        click.echo(f"{name}: all files are whole ({size_text(each.model.size)}, {short(each.model.manifest.revision)})")


def in_use(node: NodeName, entry: StoredModel, uses: Sequence[Use]) -> str:
    """Return why a model is not removed."""
    units = ", ".join(sorted({f"{use.stack}/{use.unit.split('@')[0]}" for use in uses}))
    stacks = sorted({use.stack for use in uses})
    stop = " and ".join(suggest("down", stack) for stack in stacks)
    return f"{entry.manifest.source} is in use on {node} by {units}. Nothing was removed. Stop it first: {stop}"


def unknown(start: str, name: str, known: Collection[str]) -> str:
    """Return the sentence for a name that means nothing, with the nearest one that does."""
    guess = nearest(name, sorted(known))
    hint = f" Did you mean '{guess}'?" if guess else f" There are: {', '.join(sorted(known)) or 'none'}."
    return f"{start} '{name}'.{hint}"


def short(revision: str | None) -> str:
    """Return a revision as it is shown."""
    return "-" if revision is None else revision[:REVISION_CHARS]


def size_text(size: int | None) -> str:
    """Return a size in the unit that people read."""
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def show_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns."""
    for line in columns(rows):
        click.echo(line)


@contextmanager
def checking(as_json: bool) -> Iterator[CheckReport]:
    """Give something that shows how far checks of several nodes are, on a terminal."""
    if as_json or not sys.stdout.isatty():
        yield lambda _node, _done, _total: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=30),
        bars.TextColumn("{task.fields[at]}"),
    )
    with bars.Progress(*columns, bars.TimeElapsedColumn(), transient=True) as shown:
        tasks: dict[NodeName, bars.TaskID] = {}

        def report(node: NodeName, done: int, total: int) -> None:
            if node not in tasks:
                tasks[node] = shown.add_task(f"check {node}", total=total, at="")
            shown.update(tasks[node], completed=done, at=amount(Progress("verify", done, total, "bytes")))

        yield report
