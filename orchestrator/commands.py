"""Pure: the command lines and environments of our units."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.unit import GatewaySpec, WorkerSpec

WORKER_TOKEN = "ORCHESTRATE_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""The environment variable that carries the stack's worker token, to workers and to the gateway."""


def worker_argv(python: str, spec: WorkerSpec, model_directory: str, host: str, port: int) -> list[str]:
    """Return the command of one MLX worker."""
    argv = [python, "-m", "runtime.worker", "--model-dir", model_directory, "--name", spec.model.name]
    argv += ["--host", host, "--port", str(port)]
    argv += ["--max-batch", str(spec.max_batch), "--max-waiting", str(spec.max_waiting)]
    if spec.model.context is not None:
        argv += ["--max-context", str(spec.model.context)]
    return argv


def gateway_argv(python: str, spec: GatewaySpec, conf: str, stack: str, routes: str, drain_s: float) -> list[str]:
    """Return the command of the gateway; `conf` and `routes` are absolute paths on its node."""
    argv = [python, "-m", "runtime.gateway", "--conf", conf, "--stack", stack, "--routes", routes]
    return [*argv, "--bind", spec.bind, "--port", str(spec.port), "--drain-s", f"{drain_s:g}"]


def unit_environment(token: str) -> Mapping[str, str]:
    """Return what a unit's environment has on top of the login's."""
    return {WORKER_TOKEN: token, "PYTHONUNBUFFERED": "1"}
