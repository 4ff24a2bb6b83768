"""Pure: what describes an engine, and how its options are put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.observed import ModelForm
from schemas.unit import EngineSpec

Scalar = str | int | float | bool
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class EngineError(ValueError):
    """An engine cannot be started as the service says; the message names the key and what is right."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The process of an engine. `env` is added to the login's; it carries the key, which is on no command line."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything that an engine's command is made of."""

    spec: EngineSpec
    program: str
    host: str
    """The address to bind."""
    port: int
    model_path: str
    """On its node."""
    token: str
    """What the gateway sends as its API key."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How one kind of engine is called."""

    program: str
    """What is looked for on the node's PATH; empty where the service says it."""
    install: str
    """What to do where the program is missing."""
    form: ModelForm
    """Which form of a model it loads."""
    reserved: frozenset[str]
    """The options that are ours to set, as they are written on a command line without dashes."""
    build: Callable[[Ask], Launch]
    alive_path: str = "/health"
    """What answers with 200 once the model is loaded."""
    has_key: bool = True
    """Whether it is started with our key; another is told none."""
    refused: re.Pattern[str] | None = None
    """More options that are not to be given, where they have no names that could be listed."""
    own: frozenset[str] = frozenset({"program"})
    """The arguments that are for us and no options of the engine."""


def option_name(key: str) -> str:
    """Return an argument's key as the option is written: `max_model_len` and `max-model-len` are one."""
    return key.replace("_", "-")


def options(
    spec: EngineSpec, engine: Engine, defaults: Mapping[str, Scalar], style: Literal["separate", "joined"]
) -> list[str]:
    """Return the options of a command: our `defaults`, with the service's arguments winning over them.

    `true` is the bare option; `false` leaves out one that we would have given. `joined` writes `--option=value`, which
    a value that looks like an option cannot break out of; llama.cpp knows only the separate form, and takes whatever
    comes next for the value. Raises EngineError; see `argument_problems`.
    """
    if found := argument_problems(spec, engine):
        raise EngineError("; ".join(found))
    given = {option_name(key): value for key, value in spec.args.items() if key not in engine.own}
    words: list[str] = []
    for name, value in {**defaults, **given}.items():
        if value is False:
            continue
        if value is True:
            words.append(f"--{name}")
        elif style == "joined":
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", str(value)]
    return words


def argument_problems(spec: EngineSpec, engine: Engine) -> list[str]:
    """Return a sentence for every argument that cannot be passed on."""
    place = f"services.{spec.service}.args"
    found = []
    for key, value in spec.args.items():
        if key in engine.own:
            continue
        if not OPTION.fullmatch(key):
            found.append(f"{place}.{key}: expected the long name of an option, such as max-model-len, without dashes")
        elif _is_reserved(option_name(key), engine):
            found.append(f"{place}.{key}: {spec.engine} gets this option from the stack; leave it out")
        elif isinstance(value, str) and ("\0" in value or "\n" in value):
            found.append(f"{place}.{key}: expected one line")
    return found


def _is_reserved(option: str, engine: Engine) -> bool:
    if engine.refused is not None and engine.refused.fullmatch(option):
        return True
    return any(name.startswith(option) for name in engine.reserved)  # argparse takes the start for the whole
