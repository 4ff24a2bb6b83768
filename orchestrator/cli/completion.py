"""I/O: `completion`: the script that makes a shell complete commands and stacks."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.main import COMPLETE_VARIABLE, PROGRAM


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(orchestrate completion bash)"      in ~/.bashrc
    zsh:  eval "$(orchestrate completion zsh)"       in ~/.zshrc
    fish: orchestrate completion fish | source       in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise CommandError(ExitCode.USAGE, f"No completion is known for {shell}.")
    group = click.get_current_context().find_root().command
    try:
        click.echo(found(group, {}, PROGRAM, COMPLETE_VARIABLE).source())
    except (OSError, RuntimeError) as error:  # bash's version is asked for
        raise CommandError(ExitCode.ERROR, f"{shell} cannot be asked for its version: {error}") from error
