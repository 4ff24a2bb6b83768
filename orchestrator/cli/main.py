"""I/O: the `orchestrate` program: finds the command, maps errors to exit codes. Imports nothing heavy before that."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.cli.exits import CommandError, ExitCode

PROGRAM = "orchestrate"
COMPLETE_VARIABLE = "_ORCHESTRATE_COMPLETE"
"""Set by the script of `orchestrate completion`; the same however the program is called."""
CONF_VARIABLE = "ORCHESTRATE_CONF"
DEFAULT_CONF = Path("conf")
# name -> (module below orchestrator.cli, one line for --help); the module is imported when the command is used
COMMANDS: dict[str, tuple[str, str]] = {
    "validate": ("inspect", "Check a stack's files; every problem at once."),
    "show": ("inspect", "Print a stack as it is composed."),
    "plan": ("change", "Show what apply would do."),
    "apply": ("change", "Make what runs be what the stack says."),
    "up": ("change", "Apply, wait until ready, ask the stack one question."),
    "down": ("change", "Stop everything that runs of a stack."),
    "status": ("observe", "Show what runs and whether it is well."),
    "monitor": ("monitor", "Show status again and again."),
    "logs": ("observe", "Print a unit's log."),
    "watch": ("watch", "Keep a stack as its files say: edits, ended units, returned nodes."),
    "restart": ("restart", "Restart units, or try again what has failed."),
    "drain": ("drain", "Take instances out of the routes until --undo."),
    "breaker": ("breaker", "Show how endpoints do; isolate, close or probe one."),
    "receipts": ("receipts", "Show how the last requests were routed, and why."),
    "requests": ("past", "Show the last requests: who answered, how quickly."),
    "errors": ("past", "Show the last errors of endpoints, and how many are alike."),
    "drill": ("drill", "Break an endpoint or a node on purpose, and tell what clients saw."),
    "keys": ("keys", "Make, list and revoke the keys of a gateway."),
    "history": ("history", "Show what was applied, by whom and from which revision."),
    "rollback": ("history", "Apply the files of an earlier generation again."),
    "node": ("node", "Trust, examine and provision the machines."),
    "models": ("models", "Fetch, list, send, check and remove models."),
    "probe": ("probe", "Tell why helpers do not serve, and what would mend it."),
    "init": ("files", "Write a configuration directory of your own."),
    "import": ("files", "Write node files from other programs' files."),
    "schema": ("files", "Print or write the JSON Schemas of the files."),
    "completion": ("completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that `--help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names without importing the commands behind them."""
        options = [item for item in click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-")]
        matching = [(name, text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [CompletionItem(name, help=text) for name, text in matching] + options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from schemas.problems import nearest

            meant = self._in_groups(ctx, args[0]) or [guess for guess in (nearest(args[0], COMMANDS),) if guess]
            either = " or ".join(f"'{name}'" for name in meant)
            hint = f" Did you mean {either}?" if meant else f" There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def _in_groups(self, ctx: click.Context, word: str) -> list[str]:
        """Return the commands of groups that are called so: `node trust` for `trust`."""
        groups = ((name, self.get_command(ctx, name)) for name in COMMANDS)
        return [f"{name} {word}" for name, group in groups if isinstance(group, click.Group) and word in group.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    envvar=CONF_VARIABLE,
    default=DEFAULT_CONF,
    show_default=True,
    help="The configuration directory (also ORCHESTRATE_CONF).",
)
@click.version_option(package_name="orchestrate")
@click.pass_context
def cli(ctx: click.Context, conf: Path) -> None:
    """Turn a few machines into one dependable LLM endpoint, from YAML in git.

    Every command takes the name of a stack, conf/stacks/NAME.yaml, and overrides such as services.chat.port=18123.

    Exit codes: 0 fine, 1 error, 2 changes pending (plan --detailed-exitcode), 3 configuration invalid, 4 a node
    unreachable or partly applied (run it again), 5 locked by another apply, 6 plan stale, 64 usage, 130 interrupted.
    """
    ctx.obj = conf


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result: Any = cli.main(
            args=arguments, prog_name=program_name(), complete_var=COMPLETE_VARIABLE, standalone_mode=False
        )
        code = int(result) if isinstance(result, int) else ExitCode.FINE
    except click.UsageError as error:
        error.show()
        code = ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Running it again is safe.", err=True)
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = ExitCode.ERROR
    except OSError as error:
        from orchestrator.cli.options import failed_file

        failed_file(error).show("--json" in arguments)
        code = ExitCode.ERROR
    except CommandError as failure:
        failure.show("--json" in arguments)
        code = failure.code
    return code


def program_name() -> str:
    """Return how this program was called, so that the commands it suggests can be pasted."""
    local = Path(".venv") / "bin" / "orchestrate"
    return str(local) if Path(sys.argv[0]).absolute() == local.absolute() else "orchestrate"


if __name__ == "__main__":
    sys.exit(main())
