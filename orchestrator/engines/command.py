"""Pure: any program that speaks OpenAI's API, by a command of the user's own."""

from __future__ import annotations

import re
import shlex

from orchestrator.engines.description import Ask, Engine, EngineError, Launch
from schemas.unit import EngineSpec

PLACE = re.compile(r"\{([a-z_]+)\}")
PLACES = ("port", "host", "model_path", "model_name")
KEY_VARIABLE = "ORCHESTRATE_API_KEY"
"""The environment variable in which the program finds the key that the gateway will send."""


def words(spec: EngineSpec) -> list[str]:
    """Return the words of a service's command, with its places still open. Raises EngineError.

    It is split as a shell does, and never run by one.
    """
    place, command = f"services.{spec.service}.args.command", spec.args.get("command")
    if not isinstance(command, str) or not command.strip():
        raise EngineError(f"{place}: expected the command, such as 'my-server --port {{port}} --model {{model_path}}'")
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise EngineError(f"{place}: {error}") from error
    unknown = sorted({name for word in found for name in PLACE.findall(word)} - set(PLACES))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACES)
        raise EngineError(f"{place}: {{{unknown[0]}}} is none of {known}")
    if not any("{port}" in word for word in found):
        raise EngineError(f"{place}: expected {{port}} in it: the plan chooses the port")
    others = sorted(set(spec.args) - COMMAND.own)
    if others:
        raise EngineError(
            f"services.{spec.service}.args.{others[0]}: engine command takes `command` only; put it there"
        )
    return found


def needs_model(spec: EngineSpec) -> bool:
    """Tell whether the command names the model's path, so that it has to be on the node."""
    return any("{model_path}" in word for word in words(spec))


def build(ask: Ask) -> Launch:
    """Return the command with its places filled; a value never becomes several words. Raises EngineError."""
    values = {
        "port": str(ask.port),
        "host": ask.host,
        "model_path": ask.model_path,
        "model_name": ask.spec.model.name,
    }
    _, *rest = words(ask.spec)
    filled = [PLACE.sub(lambda place: values[place[1]], word) for word in rest]
    return Launch((ask.program, *filled), {KEY_VARIABLE: ask.token, "PYTHONUNBUFFERED": "1"})


COMMAND = Engine(
    program="",
    install="install it there, or write its whole path in args.command",
    form="original",
    reserved=frozenset(),
    build=build,
    alive_path="/v1/models",
    own=frozenset({"command"}),
)
