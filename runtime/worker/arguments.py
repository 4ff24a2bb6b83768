"""I/O: the command line and the environment of a worker become its settings."""

import argparse
import ipaddress
import os
from pathlib import Path
from typing import Any, get_args

from runtime.worker.settings import Group, OnDemand, Settings
from schemas.model import ModelKind

CHAT_BATCH = 8
ENCODE_BATCH = 128
TOKEN_VARIABLE = "ORCHESTRATE_WORKER_TOKEN"  # noqa: S105 - a name, not a secret
SECRET_VARIABLE = "ORCHESTRATE_CONTROL_SECRET"  # noqa: S105
PEERS_VARIABLE = "ORCHESTRATE_CONTROL_PEERS"
COLLECTIVES = {
    "ring": ("MLX_RANK", "MLX_HOSTFILE"),
    "jaccl": ("MLX_RANK", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR"),
    "nccl": ("MLX_RANK", "MLX_WORLD_SIZE", "NCCL_HOST_IP", "NCCL_PORT"),
}
"""What `mx.distributed.init` reads, by backend; without it MLX would make a group of one."""


def parse(argv: list[str] | None) -> Settings:
    """Return the settings; ends the process with code 2 and a message where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m runtime.worker", description="Serve one model on MLX.")
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory; nothing is downloaded")
    parser.add_argument("--name", required=True, help="the model's name for clients")
    parser.add_argument("--host", default="127.0.0.1", help=f"other than loopback needs {TOKEN_VARIABLE} to be set")
    parser.add_argument("--port", type=_port, help="0 takes a free one and logs it; ranks above 0 have none")
    parser.add_argument("--kind", choices=get_args(ModelKind), default="chat", help="what it does (default chat)")
    parser.add_argument(
        "--max-batch",
        type=_positive,
        help=f"requests computed together (default {CHAT_BATCH}), or texts of other kinds than chat ({ENCODE_BATCH})",
    )
    parser.add_argument("--max-waiting", type=_count, default=64, help="further requests that wait (default 64)")
    parser.add_argument("--max-context", type=_positive, help="lower the model's context length, in tokens")
    parser.add_argument(
        "--prompt-cache-gib",
        type=_gib,
        metavar="GIB",
        help="memory for prompts to come, running requests counted (default 1, less for small models; 0: none)",
    )
    parser.add_argument("--draft-model", type=Path, metavar="DIR", help="an MLX model that proposes tokens to it")
    parser.add_argument("--draft-name", help="how /status calls it (default: as its directory)")
    parser.add_argument("--draft-tokens", type=_draft_tokens, default=3, help="proposed for a step (default 3)")
    parser.add_argument("--drain-s", type=_seconds, default=10.0, help="time for requests under way after TERM")
    _add_group(parser)
    _add_on_demand(parser)
    arguments = parser.parse_args(argv)
    group = _group(parser, arguments)
    on_demand = _on_demand(parser, arguments)
    if group is not None and group.rank > 0:
        arguments.host, arguments.port = "127.0.0.1", 0
    elif arguments.port is None:
        parser.error("--port is missing")
    if arguments.draft_model is not None and (group is not None or arguments.kind != "chat"):
        parser.error("--draft-model goes with one chat model in one process, not with --size or another --kind")
    if arguments.draft_name is not None and arguments.draft_model is None:
        parser.error("--draft-name goes with --draft-model only")
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not _is_loopback(arguments.host):
        parser.error(f"--host {arguments.host} is not loopback: set {TOKEN_VARIABLE}")
    return Settings(
        model_dir=str(arguments.model_dir),
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        token=token,
        kind=arguments.kind,
        max_batch=arguments.max_batch or (CHAT_BATCH if arguments.kind == "chat" else ENCODE_BATCH),
        max_waiting=arguments.max_waiting,
        max_context=arguments.max_context,
        prompt_cache_bytes=None if arguments.prompt_cache_gib is None else int(arguments.prompt_cache_gib * (1 << 30)),
        draft_dir=None if arguments.draft_model is None else str(arguments.draft_model),
        draft_name=arguments.draft_name,
        draft_tokens=arguments.draft_tokens,
        drain_s=arguments.drain_s,
        group=group,
        on_demand=on_demand,
    )


def _add_on_demand(parser: argparse.ArgumentParser) -> None:
    demand = parser.add_argument_group("models that are loaded when they are asked for")
    demand.add_argument("--on-demand", action="store_true", help="load at the first request, not at the start")
    demand.add_argument("--idle-stop-s", type=_seconds, help="drop the model after so many seconds without a request")
    demand.add_argument("--room", type=Path, help="the directory that the on-demand workers of this node share")
    demand.add_argument("--budget", type=Path, help="JSON file with memory_gib and set_aside_gib; read at every load")
    demand.add_argument("--memory-gib", type=float, help="what the loaded model may need (default: by its weights)")
    demand.add_argument("--service", help="the name by which neighbours know this worker (default: the model's)")


def _on_demand(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> OnDemand | None:
    if not arguments.on_demand:
        for option in ("idle_stop_s", "room", "budget", "memory_gib", "service"):
            if getattr(arguments, option) is not None:
                parser.error(f"--{option.replace('_', '-')} goes with --on-demand only")
        return None
    if arguments.size > 1:
        parser.error("--on-demand does not go with --size: a sharded group always holds its model")
    if arguments.room is None:
        parser.error("--on-demand needs --room")
    memory_gib = arguments.memory_gib
    return OnDemand(
        service=arguments.service or arguments.name,
        room=str(arguments.room),
        budget=None if arguments.budget is None else str(arguments.budget),
        memory_bytes=None if memory_gib is None else int(memory_gib * (1 << 30)),
        idle_stop_s=arguments.idle_stop_s,
    )


def _add_group(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sharded groups")
    group.add_argument("--size", type=_positive, default=1, help="ranks of the group (default 1: no group)")
    group.add_argument("--rank", type=_count, default=0, help="the number of this one; rank 0 serves")
    group.add_argument("--backend", choices=sorted(COLLECTIVES), help="what carries the collectives")
    group.add_argument("--strategy", choices=("tensor", "pipeline"), help="split every layer, or give out the layers")
    group.add_argument("--split", type=_shares, help="share of the layers per rank, as 12,10,8; for pipeline")
    group.add_argument("--control", type=_endpoint, help="HOST:PORT where rank 0 listens for the others")
    group.add_argument("--launch", help="unique per launch; ranks of another one are refused")


def _group(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Group | None:
    if arguments.size == 1:
        return None
    if arguments.kind != "chat":
        parser.error(f"--kind {arguments.kind} does not go with --size: only chat models are sharded")
    for name in ("backend", "strategy", "control", "launch"):
        if not getattr(arguments, name):
            parser.error(f"--size {arguments.size} needs --{name}")
    if arguments.rank >= arguments.size:
        parser.error(f"--rank {arguments.rank} is not below --size {arguments.size}")
    if arguments.split is not None and arguments.strategy != "pipeline":
        parser.error("--split goes with --strategy pipeline only")
    if arguments.split is not None and len(arguments.split) != arguments.size:
        parser.error(f"--split has {len(arguments.split)} shares for {arguments.size} ranks")
    _check_collectives(parser, arguments)
    secret, peers = os.environ.pop(SECRET_VARIABLE, ""), tuple(os.environ.get(PEERS_VARIABLE, "").split())
    if len(set(peers)) != arguments.size:
        parser.error(f"{PEERS_VARIABLE} must hold {arguments.size} different public keys; it has {len(set(peers))}")
    # ZeroMQ is imported by members of a group only.
    from runtime.worker.group.control import ControlError, public_key

    try:
        is_own = public_key(secret) == peers[arguments.rank]
    except ControlError as error:
        parser.error(f"{SECRET_VARIABLE}: {error}")
    if not is_own:
        parser.error(f"{SECRET_VARIABLE} does not belong to key {arguments.rank} of {PEERS_VARIABLE}")
    return Group(
        rank=arguments.rank,
        size=arguments.size,
        backend=arguments.backend,
        strategy=arguments.strategy,
        split=arguments.split,
        control=arguments.control,
        launch=arguments.launch,
        secret=secret,
        peers=peers,
    )


def _check_collectives(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    values: dict[str, Any] = {name: os.environ.get(name) for name in COLLECTIVES[arguments.backend]}
    for name, value in values.items():
        if not value:
            parser.error(f"--backend {arguments.backend} needs {name} to be set")
    if values["MLX_RANK"] != str(arguments.rank):
        parser.error(f"MLX_RANK is {values['MLX_RANK']}, --rank is {arguments.rank}")
    for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES"):
        if name in values and not Path(values[name]).is_file():
            parser.error(f"{name} names no file: {values[name]}")


def _shares(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _endpoint(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise argparse.ArgumentTypeError("must be IP:PORT, an IPv6 address in brackets") from None
    if address.is_unspecified:
        raise argparse.ArgumentTypeError(f"{host} is every address; name the cluster's")
    if not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError("must have a port between 1 and 65535")
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("must be between 0 and 65535")
    return number


def _positive(text: str) -> int:
    return _at_least(1, text)


def _count(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}")
    return number


def _draft_tokens(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError("must be between 1 and 16")
    return number


def _gib(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 4096:
        raise argparse.ArgumentTypeError("must be between 0 and 4096")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86400:
        raise argparse.ArgumentTypeError("must be between 0 and 86400")
    return number
