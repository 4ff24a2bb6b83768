"""Pure: the command lines, environments and link files of our units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.addresses import bind_address
from schemas.unit import GatewaySpec, GroupSpec, WorkerSpec

WORKER_TOKEN = "ORCHESTRATE_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""The environment variable that carries the stack's worker token, to workers and to the gateway."""
ADMIN_TOKEN = "ORCHESTRATE_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
"""Carries what the orchestrator shows the gateway, to the gateway only."""
CONTROL_SECRET = "ORCHESTRATE_CONTROL_SECRET"  # noqa: S105 - the name of a variable
"""Carries a rank's own CURVE secret key for the control plane, in Z85."""
CONTROL_PEERS = "ORCHESTRATE_CONTROL_PEERS"
"""Carries the public keys of all ranks of the launch, in rank order."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of one launch of a group meet."""

    launch: str
    """Names the launch; ranks of different launches refuse each other."""
    control: str
    """`ip:port` of rank 0's control plane."""
    links: tuple[str, ...]
    """`ip:port` per rank for ring; that of rank 0 alone for JACCL and NCCL, which meet there."""
    devices: tuple[tuple[str | None, ...], ...] = ()
    """The RDMA device from each rank to each other, for JACCL."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a worker that loads on demand is told of its node."""

    room: str
    """The directory that the on-demand workers of the node share."""
    budget: str
    """The file with the memory that they have together, and what each model needs."""


def worker_argv(
    python: str,
    spec: WorkerSpec,
    model_directory: str,
    port: int | None,
    meeting: Meeting | None = None,
    demand: Demand | None = None,
    draft_directory: str | None = None,
) -> list[str]:
    """Return the command of one MLX worker; a rank behind the first serves no HTTP and has no port."""
    argv = [python, "-m", "runtime.worker", "--model-dir", model_directory, "--name", spec.model.name]
    if port is not None:
        argv += ["--host", bind_address(spec.host), "--port", str(port)]
    argv += ["--max-batch", str(spec.max_batch), "--max-waiting", str(spec.max_waiting)]
    if spec.model.context is not None:
        argv += ["--max-context", str(spec.model.context)]
    if spec.model.kind != "chat":
        argv += ["--kind", spec.model.kind]
    if spec.prompt_cache_gib is not None:
        argv += ["--prompt-cache-gib", f"{spec.prompt_cache_gib:g}"]
    if spec.draft is not None and draft_directory is not None:
        argv += ["--draft-model", draft_directory, "--draft-name", spec.draft.name]
        argv += ["--draft-tokens", str(spec.draft_tokens)]
    if spec.group is not None and meeting is not None:
        argv += ["--rank", str(spec.rank), "--size", str(spec.group.size)]
        argv += ["--backend", spec.group.backend, "--strategy", spec.group.strategy]
        if spec.group.split is not None:
            argv += ["--split", ",".join(str(share) for share in spec.group.split)]
        argv += ["--control", meeting.control, "--launch", meeting.launch]
    if spec.on_demand and demand is not None:
        argv += ["--on-demand", "--service", spec.service, "--room", demand.room, "--budget", demand.budget]
        if spec.idle_stop_s is not None:
            argv += ["--idle-stop-s", f"{spec.idle_stop_s:g}"]
    return argv


def gateway_argv(
    python: str, spec: GatewaySpec, conf: str, stack: str, routes: str, drain_s: float, keys: str | None = None
) -> list[str]:
    """Return the command of the gateway; `conf`, `routes` and `keys` are absolute paths on its node.

    `keys` is where its keys file is put, where its node has none of the user's files.
    """
    argv = [python, "-m", "runtime.gateway", "--conf", conf, "--stack", stack, "--routes", routes]
    argv += [] if keys is None else ["--keys", keys]
    return [*argv, "--bind", spec.bind, "--port", str(spec.port), "--drain-s", f"{drain_s:g}"]


def watcher_argv(python: str, conf: str, stack: str) -> list[str]:
    """Return the command of the supervised watcher; it waits while a person watches the stack."""
    return [python, "-m", "orchestrator.cli.main", "--conf", conf, "watch", stack, "--json", "--wait"]


def unit_environment(token: str) -> Mapping[str, str]:
    """Return what a unit's environment has on top of the login's."""
    return {WORKER_TOKEN: token, "PYTHONUNBUFFERED": "1"}


def gateway_environment(worker_token: str, admin_token: str) -> Mapping[str, str]:
    """Return what the gateway's environment has on top of the login's."""
    return {**unit_environment(worker_token), ADMIN_TOKEN: admin_token}


def watcher_environment() -> Mapping[str, str]:
    """Return what the watcher's environment has on top of the login's; it reads the worker token from its file."""
    return {"PYTHONUNBUFFERED": "1"}


def link_file(group: GroupSpec, meeting: Meeting) -> str | None:
    """Return the JSON file from which MLX reads where a group's ranks are; None for NCCL, which needs none.

    The formats are those that `mlx.launch` writes (mlx 0.32.4): for ring a list of addresses per rank, for JACCL an
    N x N matrix of device names with null on the diagonal.
    """
    match group.backend:
        case "ring":
            return json.dumps([[link] for link in meeting.links]) + "\n"
        case "jaccl":
            return json.dumps(meeting.devices) + "\n"
        case "nccl":
            return None


def rank_environment(group: GroupSpec, rank: int, meeting: Meeting, file: str) -> dict[str, str]:
    """Return the variables from which MLX learns its place in a group; `file` is the path of its `link_file`.

    MLX_METAL_FAST_SYNCH stays unset: with it JACCL groups hang. The names are those of `mlx.launch` (mlx 0.32.4).
    """
    match group.backend:
        case "ring":
            return {"MLX_RANK": str(rank), "MLX_HOSTFILE": file}
        case "jaccl":
            return {"MLX_RANK": str(rank), "MLX_IBV_DEVICES": file, "MLX_JACCL_COORDINATOR": meeting.links[0]}
        case "nccl":
            host, _, port = meeting.links[0].rpartition(":")
            here = group.nodes[rank]
            device = group.nodes[:rank].count(here)  # the ranks of one machine take its GPUs in turn
            names = {"MLX_RANK": str(rank), "MLX_WORLD_SIZE": str(group.size), "NCCL_HOST_IP": host, "NCCL_PORT": port}
            return {**names, "CUDA_VISIBLE_DEVICES": str(device)}


def control_environment(secret: str, peers: Sequence[str]) -> dict[str, str]:
    """Return the keys of a rank's control plane: its own secret and the public keys of all, in rank order."""
    return {CONTROL_SECRET: secret, CONTROL_PEERS: " ".join(peers)}
