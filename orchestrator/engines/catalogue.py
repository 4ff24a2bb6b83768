"""Pure: every engine that can be managed, by the name that a service gives it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.engines import command, mlx_lm_server
from orchestrator.engines.command import COMMAND
from orchestrator.engines.description import Ask, Engine, EngineError, Launch
from orchestrator.engines.llama_server import LLAMA_SERVER
from orchestrator.engines.mlx_lm_server import MLX_LM_SERVER
from orchestrator.engines.vllm import VLLM
from orchestrator.observed import ModelForm
from schemas.unit import EngineSpec

ENGINES: Mapping[str, Engine] = {
    "llama-server": LLAMA_SERVER,
    "vllm": VLLM,
    "mlx-lm-server": MLX_LM_SERVER,
    "command": COMMAND,
}


def launch(
    spec: EngineSpec, *, program: str | None = None, host: str, port: int, model_path: str, token: str
) -> Launch:
    """Return the process of an engine.

    `program` is where it was found on the node, its plain name when absent; `host` the address to bind; `model_path`
    what `Store` or `loadable_on` names on the node; `token` what the gateway will send as API key. Raises EngineError.
    """
    engine = ENGINES[spec.engine]
    return engine.build(Ask(spec, program or program_name(spec), host, port, model_path, token))


def problems(spec: EngineSpec, host: str) -> tuple[str, ...]:
    """Return what keeps an engine from being started at an address, in sentences with the key to correct."""
    try:
        launch(spec, host=host, port=1, model_path="model", token="token")  # noqa: S106 - no secret
    except EngineError as error:
        return (str(error),)
    return ()


def program_name(spec: EngineSpec) -> str:
    """Return the program that a service asks for: a name to look for, or a path. Raises EngineError."""
    if spec.engine == "command":
        return command.words(spec)[0]
    named = spec.args.get("program")
    if named is not None and (not isinstance(named, str) or not named or named.startswith("-")):
        raise EngineError(f"services.{spec.service}.args.program: expected the name or the path of a program")
    return str(named) if named is not None else ENGINES[spec.engine].program


def install_hint(spec: EngineSpec, node: str) -> str:
    """Return the sentence for a node that has not got an engine's program."""
    return f"{program_name(spec)} is not on {node}: {ENGINES[spec.engine].install}"


def model_form(spec: EngineSpec) -> ModelForm | None:
    """Return the form in which the model has to be on the node; None where the command does not name its path."""
    if spec.engine == "command" and not command.needs_model(spec):
        return None
    return ENGINES[spec.engine].form


def upstream_model(spec: EngineSpec) -> str:
    """Return the name that the engine knows the model by."""
    return mlx_lm_server.UPSTREAM_MODEL if spec.engine == "mlx-lm-server" else spec.model.name
