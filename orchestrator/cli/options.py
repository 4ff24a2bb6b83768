"""I/O: what all commands share: the stack they work on, `--json`, and what errors from below become."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shlex
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.main import CONF_VARIABLE, DEFAULT_CONF, program_name
from orchestrator.controller import Controller
from orchestrator.directories import UNUSABLE, Directories
from orchestrator.node.client import LockedError, ShimError
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import EVERYTHING
from orchestrator.rollback import RollbackError
from orchestrator.transport.base import TransportError
from schemas.base import NodeName
from schemas.compose import stack_names
from schemas.problems import ConfigurationError
from schemas.stack import Stack

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


def stack_options(command: Command) -> Command:
    """Add STACK, OVERRIDES, `--conf` and `--json` to a command."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
        conf_option,
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("stack", shell_complete=complete_stack),
    ):
        command = decorate(command)
    return command


def complete_stack(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the stacks that a shell may complete to."""
    conf = ctx.params.get("conf") or ctx.find_root().params.get("conf") or DEFAULT_CONF
    return [name for name in stack_names(conf) if name.startswith(incomplete)]


def conf_option(command: Command) -> Command:
    """Add `--conf`, which may stand before or after the command's name."""
    option = click.option(
        "--conf", type=click.Path(path_type=Path), default=None, help="The configuration directory.  [default: conf]"
    )
    return option(command)


def controller(
    conf: Path | None, stack: str, overrides: tuple[str, ...] = (), policy: PlanPolicy = EVERYTHING
) -> Controller:
    """Return the controller of a stack; `conf` after the command wins over the one before it."""
    root = click.get_current_context().find_root()
    root.obj = conf or root.obj
    return Controller(root.obj, stack, overrides, directories(), policy, note)


def as_applied(conf: Path | None, stack: str) -> tuple[Controller, Stack]:
    """Return a stack with the overrides of its last apply, which what runs was made with, and its controller.

    Raises `CommandError` with every problem of files that cannot be used.
    """
    control = controller(conf, stack)
    last = next(control.journal.latest(), None)
    if last is not None and last.overrides:
        control = controller(conf, stack, last.overrides)
    try:
        return control, control.compose().stack
    except ConfigurationError as error:
        raise invalid(error) from error


def note(text: str) -> None:
    """Tell a person why nothing happens yet; stdout stays the product."""
    click.echo(text, err=True)


def suggest(*words: str) -> str:
    """Return a command of this program that can be pasted: called as now, for the same configuration directory."""
    conf = click.get_current_context().find_root().obj
    is_implied = conf == DEFAULT_CONF or str(conf) == os.environ.get(CONF_VARIABLE)
    return shlex.join([program_name(), *(() if is_implied else ("--conf", str(conf))), *words])


def directories() -> Directories:
    """Return where this machine keeps its state."""
    try:
        return Directories.from_environment(os.environ)
    except RuntimeError as error:  # what pathlib raises for a user without a home
        message = "This user has no home directory; set ORCHESTRATE_STATE to a directory for state and models."
        raise CommandError(ExitCode.ERROR, message) from error


def print_json(line: Mapping[str, Any]) -> None:
    """Print one object of the machine-readable output, with the version of its shape."""
    click.echo(json.dumps({"version": 1, **line}))


def assume_lost_option(command: Command) -> Command:
    """Add `--assume-lost`, which `policy` reads, to a command that starts units."""
    return _assume_lost("what ran there is started elsewhere")(command)


def without_lost_option(command: Command) -> Command:
    """Add the same to a command that starts nothing."""
    return _assume_lost("it holds nothing up, and what runs there is left as it is")(command)


def _assume_lost(then: str) -> Callable[[Command], Command]:
    text = f"Take a node that cannot be reached for gone: {then}. Repeatable."
    return click.option("--assume-lost", "assume_lost", multiple=True, metavar="NODE", help=text)


def policy(targets: tuple[str, ...], assume_lost: tuple[str, ...]) -> PlanPolicy:
    """Return what `--target` and `--assume-lost` say."""
    return PlanPolicy(targets=targets, assume_lost=frozenset(NodeName(name) for name in assume_lost))


def planning_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add STACK, OVERRIDES, `--conf`, `--json`, `--target` and `--assume-lost`.

    The command is called with the `control` that they make, and with `as_json`.
    """
    target = click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="NAME",
        help="Change only this service, slot, node, helper or `gateway`, and what it needs. Repeatable.",
    )

    @stack_options
    @target
    @assume_lost_option
    @functools.wraps(command)
    def call(
        stack: str,
        overrides: tuple[str, ...],
        conf: Path | None,
        targets: tuple[str, ...],
        assume_lost: tuple[str, ...],
        **others: Any,
    ) -> int:
        return command(control=controller(conf, stack, overrides, policy(targets, assume_lost)), **others)

    return call


def run(work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run a command's work to its end, for `timeout` seconds at most; what a person can act on is `CommandError`."""

    async def limited() -> T:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"Given up after {timeout:g} s. Running it again is safe."
            raise CommandError(ExitCode.PARTIAL, message) from None

    try:
        return asyncio.run(limited())
    except BrokenPipeError:
        raise  # who read our output has left; click ends the program without a word
    except BaseExceptionGroup as group:
        raise _failure(_first(group)) from group
    except (ConfigurationError, RollbackError, ShimError, TransportError, OSError) as error:
        raise _failure(error) from error


def invalid(error: ConfigurationError) -> CommandError:
    """Return the failure for a configuration that cannot be used, with every problem."""
    lines = [{"type": "problem", **problem.model_dump(mode="json")} for problem in error.problems]
    count = len(error.problems)
    ending = f"{count} problem{'s' if count != 1 else ''}. Nothing was changed."
    return CommandError(ExitCode.INVALID, f"{error}\n{ending}", lines)


def failed_file(error: OSError) -> CommandError:
    """Return the failure for a file that cannot be used; of our own directories it says what they need."""
    if not error.filename:
        return CommandError(ExitCode.ERROR, str(error.strerror))
    is_ours = isinstance(error, PermissionError | NotADirectoryError) and _is_ours(Path(str(error.filename)))
    return CommandError(ExitCode.ERROR, f"{error.filename}: {error.strerror}" + (f"; {UNUSABLE}" if is_ours else ""))


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(CommandError):  # without a home there is nothing of ours
        return directories().holds(path)
    return False


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _failure(error: BaseException) -> BaseException:
    match error:
        case ConfigurationError():
            return invalid(error)
        case LockedError(holder=holder):
            who = f"{holder.get('actor')} (pid {holder.get('pid')}, {holder.get('command')})"
            return CommandError(
                ExitCode.LOCKED, f"Another command is changing this stack: {who}. Wait for it, then run this again."
            )
        case TransportError():
            return CommandError(ExitCode.PARTIAL, f"{error}")
        case ShimError() | RollbackError():
            return CommandError(ExitCode.ERROR, f"{error}")
        case BrokenPipeError():
            return error
        case OSError(strerror=reason) if reason:
            return failed_file(error)
        case _:
            return error
