"""I/O: `validate` and `show`: what the files say, without looking at any node."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import controller, invalid, print_json, stack_options
from schemas.compose import Composition
from schemas.problems import ConfigurationError


def _compose(conf: Path | None, stack: str, overrides: tuple[str, ...]) -> Composition:
    try:
        return controller(conf, stack, overrides).compose()
    except ConfigurationError as error:
        raise invalid(error) from error


@click.command()
@stack_options
def validate(stack: str, overrides: tuple[str, ...], conf: Path | None, as_json: bool) -> None:
    """Check a stack's files; every problem at once.

    Exits with 3 where something is wrong.
    """
    composition = _compose(conf, stack, overrides)
    files = [str(path) for path in composition.files]
    if as_json:
        print_json({"type": "valid", "stack": stack, "files": files})
    else:
        click.echo(f"Stack {stack} is valid ({len(files)} files: {', '.join(files)}).")
        for note in composition.notes:
            click.echo(f"Note: {note}.")


@click.command()
@stack_options
def show(stack: str, overrides: tuple[str, ...], conf: Path | None, as_json: bool) -> None:
    """Print a stack as it is composed, with defaults; secrets are ***."""
    composed = _compose(conf, stack, overrides).stack
    if as_json:
        print_json({"type": "stack", "stack": composed.model_dump(mode="json")})
        return
    import yaml

    tree = composed.model_dump(mode="json", exclude_none=True)
    click.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)
