"""I/O: `keys new|list|revoke`: who may ask a gateway."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.group import CommandGroup
from orchestrator.cli.main import DEFAULT_CONF
from orchestrator.cli.options import as_applied, conf_option, print_json, run
from orchestrator.controller import Controller
from orchestrator.keys import KeyNameError, KeysAt
from orchestrator.keys_in_force import bring_into_force
from schemas.compose import stack_names
from schemas.keys import LONGEST_NAME, MOST_RPM, Key, Scope, moment_s
from schemas.problems import nearest
from schemas.stack import KeysFile, Stack

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
DAY_S = 86_400.0


@click.group(cls=CommandGroup)
def keys() -> None:
    """Make, list and revoke the keys of a gateway.

    STACK may be left out where only one stack of the configuration names a keys file.
    """


stack_argument = click.argument("stack", required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@keys.command()
@stack_argument
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(Scope)),
    multiple=True,
    required=True,
    help="What it may do: ask models, scrape metrics, see how the gateway is, or everything. Repeatable.",
)
@click.option("--role", "roles", multiple=True, metavar="NAME", help="The only names it may ask for. Repeatable.")
@click.option("--expires", metavar="30d", help="When it ends: minutes, hours or days from now, such as 90m, 12h, 30d.")
@click.option("--rpm", type=click.IntRange(1, MOST_RPM), help="The most requests to models in any minute.")
@click.option("--name", default="", help="Whose it is.")
@conf_option
@json_option
def new(
    stack: str | None,
    scopes: tuple[Scope, ...],
    roles: tuple[str, ...],
    expires: str | None,
    rpm: int | None,
    name: str,
    conf: Path | None,
    as_json: bool,
) -> int:
    """Make a key and print it, this once: only its digest is kept."""
    life_s = None if expires is None else _seconds(expires)
    if len(name) > LONGEST_NAME:
        raise click.BadParameter(f"expected at most {LONGEST_NAME} characters, found {len(name)}", param_hint="--name")

    async def work() -> int:
        control, composed, at = _keys_of(conf, stack)
        _check_names(composed, roles)
        made = await asyncio.to_thread(at.add, scopes, name=name, roles=roles, rpm=rpm, life_s=life_s)
        if as_json:
            print_json({"type": "key", "id": made.id, "key": made.text, **_shown(made.entry)})
        else:
            click.echo(made.text)
            click.echo(f"Key {made.id}: {_words(made.entry)}. It is not shown again.", err=True)
        return await _put_in_force(control, composed, as_json)

    return run(work())


@keys.command("list")
@stack_argument
@conf_option
@json_option
def list_(stack: str | None, conf: Path | None, as_json: bool) -> int:
    """List the keys by their ids."""

    async def work() -> int:
        _, _, at = _keys_of(conf, stack)
        found = sorted(
            (await asyncio.to_thread(at.read)).keys.items(), key=lambda each: (each[1].created or "", each[0])
        )
        for ident, key in found:
            if as_json:
                print_json({"type": "key", "id": ident, **_shown(key)})
            else:
                click.echo(f"{ident}  {_words(key)}")
        if not found and not as_json:
            click.echo(f"{at.path} has no keys.")
        return ExitCode.FINE

    return run(work())


@keys.command()
@click.argument("words", nargs=-1, required=True, metavar="[STACK] ID|NAME")
@click.option("--stack", "named", metavar="STACK", help="The same as STACK before the key.")
@conf_option
@json_option
def revoke(words: tuple[str, ...], named: str | None, conf: Path | None, as_json: bool) -> int:
    """Take a key away; what is being answered for it ends too."""
    *before, key = words
    if len(before) > (named is None):
        raise click.UsageError(f"Expected the stack at most once and one key, found: {' '.join(words)}")
    stack = before[0] if before else named

    async def work() -> int:
        control, composed, at = _keys_of(conf, stack)
        try:
            ident, gone = await asyncio.to_thread(at.revoke, key)
        except KeyNameError as error:
            raise CommandError(ExitCode.ERROR, str(error)) from error
        if as_json:
            print_json({"type": "revoked", "id": ident, **_shown(gone)})
        else:
            click.echo(f"Revoked {ident}: {_words(gone)}.")
        return await _put_in_force(control, composed, as_json)

    return run(work())


async def _put_in_force(control: Controller, stack: Stack, as_json: bool) -> int:
    """Let the gateway that runs take the keys over now, and say whether it has."""
    outcome = await bring_into_force(stack, control.cluster(), str(control.conf))
    if as_json:
        print_json({"type": "in force", "outcome": outcome.kind, "detail": outcome.words})
    else:
        click.echo(outcome.words, err=True)
    return ExitCode.FINE if outcome.kind != "failed" else ExitCode.PARTIAL


def _keys_of(conf: Path | None, name: str | None) -> tuple[Controller, Stack, KeysAt]:
    """Return a stack and its keys file; without a name, those of the only stack that has one."""
    if name is None:
        place = conf or click.get_current_context().find_root().obj or DEFAULT_CONF
        found = [each for each in stack_names(place) if _has_keys(conf, each)]
        if len(found) != 1:
            which = f"these name one: {', '.join(found)}" if found else "no stack names one"
            message = f"Say whose keys are meant; {which} (`gateway: {{auth: {{keys_file: secrets/keys.yaml}}}}`)."
            raise CommandError(ExitCode.ERROR, message)
        name = found[0]
    control, stack = as_applied(conf, name)
    if not isinstance(stack.gateway.auth, KeysFile):
        message = (
            f"Stack {name} asks for no keys. First write `auth: {{keys_file: secrets/keys.yaml}}` below `gateway:` in "
            f"{control.conf}/stacks/{name}.yaml."
        )
        raise CommandError(ExitCode.ERROR, message)
    return control, stack, KeysAt(control.conf, stack.gateway.auth.keys_file)


def _has_keys(conf: Path | None, name: str) -> bool:
    try:
        return isinstance(as_applied(conf, name)[1].gateway.auth, KeysFile)
    except CommandError:
        return False


def _check_names(stack: Stack, roles: tuple[str, ...]) -> None:
    """Refuse a role that nobody could ask for."""
    offered = (model for helper in stack.helpers.values() for model in helper.models)
    known = {*stack.roles, *stack.aliases, *stack.services, *stack.models, *offered}
    for role in roles:
        if role not in known:
            guess = nearest(role, known)
            hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(sorted(known))}"
            raise CommandError(ExitCode.ERROR, f"No role, alias or model is called '{role}'; {hint}")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if found is None:
        message = f"expected minutes, hours or days such as 90m, 12h or 30d, found {text!r}"
        raise click.BadParameter(message, param_hint="--expires")
    return int(found[1]) * _UNITS[found[2]]


def _words(key: Key) -> str:
    """Describe a key in one line."""
    parts = [", ".join(key.scopes)]
    parts += [f"only {', '.join(key.roles)}"] if key.roles else []
    parts += [f"{key.rpm} a minute"] if key.rpm is not None else []
    if key.expires is not None:
        left_s = moment_s(key.expires) - time.time()
        parts.append(f"expired {key.expires}" if left_s <= 0 else f"expires {key.expires}")
    name = f"{key.name!r}, " if key.name else ""
    return name + "; ".join(parts)


def _shown(key: Key) -> Mapping[str, Any]:
    """Return what `--json` tells of a key. Its digest is nobody's business."""
    told = key.model_dump(mode="json", exclude={"sha256"})
    return {**told, "is_expired": key.expires is not None and moment_s(key.expires) <= time.time()}
