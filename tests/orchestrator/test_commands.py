"""The commands, environments and link files of units, as golden texts."""

from __future__ import annotations

import json

import pytest

from orchestrator.addresses import group_addresses, rdma_devices
from orchestrator.commands import (
    Meeting,
    control_environment,
    gateway_argv,
    link_file,
    rank_environment,
    worker_argv,
)
from schemas.base import ModelName, NodeName, ServiceName
from schemas.node import Node
from schemas.unit import GatewaySpec, GroupSpec, ModelSpec, WorkerSpec

THREE = tuple(NodeName(name) for name in ("mono512", "m4max", "studio"))
NODES = {
    NodeName("mono512"): Node(
        reach="ssh", host="mono512.lan", addresses={"lan": "192.168.1.11", "tb": "10.0.0.1"},
        rdma={"m4max": "rdma_en2", "studio": "rdma_en3"},
    ),
    NodeName("m4max"): Node(
        reach="ssh", host="m4max.lan", addresses={"lan": "192.168.1.12", "tb": "10.0.0.2"},
        rdma={"mono512": "rdma_en2", "studio": "rdma_en4"},
    ),
    NodeName("studio"): Node(
        reach="ssh", host="studio.lan", addresses={"lan": "192.168.1.13", "tb": "10.0.0.3"},
        rdma={"mono512": "rdma_en3", "m4max": "rdma_en4"},
    ),
    NodeName("gpu"): Node(reach="ssh", host="192.168.1.30"),
}  # fmt: skip
GROUPS = {
    "ring": GroupSpec(backend="ring", strategy="tensor", nodes=THREE),
    "pipeline": GroupSpec(backend="ring", strategy="pipeline", split=(12, 10, 8), nodes=THREE),
    "jaccl": GroupSpec(backend="jaccl", strategy="tensor", nodes=THREE),
    "nccl": GroupSpec(backend="nccl", strategy="tensor", nodes=(NodeName("gpu"), NodeName("gpu"), NodeName("studio"))),
    "loopback": GroupSpec(backend="ring", strategy="tensor", nodes=(NodeName("local"),) * 3),
}


def meeting(group: GroupSpec) -> Meeting:
    addresses = group_addresses(group, NODES)
    links = tuple(f"{host}:{18110 + rank}" for rank, host in enumerate(addresses.links))
    devices = rdma_devices(group, NODES) if group.backend == "jaccl" else ()
    return Meeting("f3a9c1d2", f"{addresses.control}:18120", links, devices)


def rank(group: GroupSpec | None, number: int = 0, host: str | None = None) -> WorkerSpec:
    model = ModelSpec(name=ModelName("coder"), source="hub:org/coder", context=4096)
    node = group.nodes[number] if group is not None else NodeName("local")
    return WorkerSpec(
        node=node, service=ServiceName("coder"), replica=0, rank=number, model=model, max_batch=8, max_waiting=64,
        group=group, host=host,
    )  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_every_rank_of_a_group_gets_its_command_environment_and_file(name, golden):
    group = GROUPS[name]
    meets = meeting(group)
    lines = []
    for number in range(group.size):
        argv = worker_argv("python", rank(group, number), "/models/coder", 18101 if number == 0 else None, meets)
        environment = rank_environment(group, number, meets, "/state/links.json")
        lines += [" ".join(argv), *(f"  {key}={value}" for key, value in environment.items())]
    lines += ["", link_file(group, meets) or "no file\n"]
    golden.check(f"commands/group-{name}.txt", "\n".join(lines))


def test_a_worker_alone_and_a_gateway_have_these_commands(golden):
    spec = GatewaySpec(node=NodeName("local"), bind="127.0.0.1", port=8000)
    commands = (
        worker_argv("python", rank(None), "/models/coder", 18100),
        worker_argv("python", rank(None, host="192.168.1.11"), "/models/coder", 18100),
        worker_argv("python", rank(None, host="mono512.lan"), "/models/coder", 18100),
        gateway_argv("python", spec, "/conf", "home", "/state/routes.json", 30.0),
    )
    draft = ModelSpec(name="small", source="path:/small")
    helped = rank(None).model_copy(update={"prompt_cache_gib": 2.5, "draft": draft, "draft_tokens": 4})
    commands += (worker_argv("python", helped, "/models/coder", 18100, draft_directory="/models/small"),)
    golden.check("commands/alone.txt", "".join(" ".join(argv) + "\n" for argv in commands))


def test_a_rank_knows_its_own_secret_and_the_public_keys_of_all():
    assert control_environment("own", ["a", "b"]) == {
        "ORCHESTRATE_CONTROL_SECRET": "own",
        "ORCHESTRATE_CONTROL_PEERS": "a b",
    }


def test_fast_synch_stays_unset():
    for group in GROUPS.values():
        assert not any("FAST_SYNCH" in name for name in rank_environment(group, 0, meeting(group), "/f"))


def test_the_jaccl_matrix_has_null_on_its_diagonal_and_a_device_for_every_pair():
    rows = json.loads(link_file(GROUPS["jaccl"], meeting(GROUPS["jaccl"])) or "")
    for i, row in enumerate(rows):
        assert [device is None for device in row] == [i == j for j in range(3)]
