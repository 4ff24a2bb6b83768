"""I/O: `init`, `schema` and `import`: files that the user goes on with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.main import program_name
from orchestrator.cli.options import conf_option
from orchestrator.starter import SCHEMA_DIRECTORY, schema_files, starter_files
from schemas.export import file_schemas
from schemas.hostfile import HostfileError, import_hostfile
from schemas.problems import nearest


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--force", is_flag=True, help="Write into a directory that has files; those of the same names are replaced."
)
@click.option("--git", is_flag=True, help="Make it a git repository.")
def init(directory: Path, force: bool, git: bool) -> None:
    """Write a configuration directory of your own, ready for git.

    It holds one stack, quickstart: a small model on this machine.
    """
    if not force and directory.is_dir() and any(directory.iterdir()):
        message = f"{directory} is not empty; name another directory, or write into it with --force."
        raise CommandError(ExitCode.ERROR, message)
    files = starter_files(file_schemas())
    _write(directory, files)
    (directory / "secrets").mkdir(mode=0o700, exist_ok=True)
    if git:
        _git_init(directory)
    click.echo(f"Wrote {len(files)} files to {directory}.")
    click.echo(f"Next: {program_name()} --conf {directory} up quickstart")


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write all of them into a directory.")
def schema(name: str | None, out: Path | None) -> None:
    """Print the JSON Schema of a kind of file, or write them all with --out.

    NAME is stack, node, model, policy or routes.
    """
    schemas = file_schemas()
    if out is not None:
        wanted = {name: schemas[name]} if name in schemas else schemas
        _write(out, schema_files(wanted))
        click.echo(f"Wrote {', '.join(schema_files(wanted))} to {out}.")
    elif name is None:
        for known, each in schemas.items():
            click.echo(f"{known:<8} {each['title']}")
    elif name not in schemas:
        guess = nearest(name, schemas)
        hint = f" Did you mean '{guess}'?" if guess else f" There are: {', '.join(schemas)}."
        raise CommandError(ExitCode.USAGE, f"No schema is called {name!r}.{hint}")
    else:
        click.echo(json.dumps(schemas[name], indent=2))


@click.group("import", cls=CommandGroup)
def import_() -> None:
    """Write node files from other programs' files."""


@import_.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write.  [default: CONF/nodes]")
@click.option("--force", is_flag=True, help="Replace node files of the same names.")
@conf_option
def hostfile(file: Path, out: Path | None, force: bool, conf: Path | None) -> None:
    """Write a node file for each host of an MLX hostfile, as `mlx.launch --hostfile` reads it."""
    try:
        imported = import_hostfile(file.read_text(encoding="utf-8"))
    except (HostfileError, UnicodeDecodeError) as error:
        raise CommandError(ExitCode.INVALID, f"{file}: {error}") from error
    root = conf or click.get_current_context().find_root().obj
    directory = out or root / "nodes"
    there = [f"{name}.yaml" for name in imported.nodes if (directory / f"{name}.yaml").exists()]
    if there and not force:
        message = f"{directory} has {', '.join(there)} already; look at them, then replace them with --force."
        raise CommandError(ExitCode.ERROR, message)
    _write(directory, {f"{name}.yaml": node_file(directory, name, node) for name, node in imported.nodes.items()})
    for name, node in imported.nodes.items():
        click.echo(f"{directory / name}.yaml: {node.get('host', 'this machine')}")
    for note in imported.notes:
        click.echo(f"Note: {note}.")
    names = ", ".join(imported.nodes)
    click.echo(f"In a stack: `- /nodes: [{names}]`, and for one model over all of them:")
    click.echo(f"  nodes: [{names}]")
    click.echo(f"  sharding: {{backend: {imported.backend or 'ring'}, strategy: tensor}}")


def node_file(directory: Path, name: str, node: Mapping[str, object], comment: str = "") -> str:
    """Return the text of a node file in a directory; `comment` is whole lines, with their `#`."""
    import yaml

    return _schema_line(directory) + comment + yaml.safe_dump({name: dict(node)}, sort_keys=False)


def _schema_line(directory: Path) -> str:
    """Return the line that editors read, where the schemas are near: of `init`, or of a checkout of ours."""
    for near in (f"../{SCHEMA_DIRECTORY}", "../../schemas/json"):
        if (directory / near / "node.schema.json").is_file():
            return f"# yaml-language-server: $schema={near}/node.schema.json\n"
    return ""


def _write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _git_init(directory: Path) -> None:
    try:
        subprocess.run(["git", "init", "--quiet"], cwd=directory, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CommandError(ExitCode.ERROR, f"The files are there, but git could not be set up: {error}") from error
