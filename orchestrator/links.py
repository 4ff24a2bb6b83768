"""I/O: tests the links of one group: a small program per rank, on fresh ports, beside whatever serves."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.addresses import group_addresses, rdma_devices
from orchestrator.cluster import ReachedNode
from orchestrator.commands import Meeting, link_file, rank_environment
from orchestrator.link_verdict import Failed, Finding, Measured, RankOutcome, judge, read_outcome
from orchestrator.transport.base import CommandTimeoutError
from schemas.base import NodeName
from schemas.node import Node
from schemas.unit import GroupSpec

PREPARE_S = 150.0
"""For a rank to start, to be called and to join, before it measures: 30 s and 60 s of it are its own bounds."""
LAST_WORDS_S = 5.0
"""What the other ranks get to say what they saw, once one has failed."""
_FILE = "LINK-FILE"
"""Stands for the path of the link file, which each rank writes for itself."""


class NoPortsError(Exception):
    """A node's range has too few free ports."""


@dataclass(frozen=True, slots=True)
class _Rank:
    node: ReachedNode
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    link_file: str


async def probe_links(
    group: GroupSpec, declared: Mapping[NodeName, Node], nodes: Mapping[NodeName, ReachedNode], seconds: float
) -> tuple[tuple[RankOutcome, ...], tuple[Finding, ...]]:
    """Return what every rank has measured, and what is wrong.

    No rank outlives the call. Raises `TransportError`, `AddressError`, and `NoPortsError`.
    """
    ranks, callees = await _prepare(group, declared, nodes, seconds)
    found = await _run_all(ranks, PREPARE_S + 4 * seconds)
    outcomes = tuple(RankOutcome(rank, node, found[rank]) for rank, node in enumerate(group.nodes))
    return outcomes, judge(outcomes, callees, declared)


async def _prepare(
    group: GroupSpec, declared: Mapping[NodeName, Node], nodes: Mapping[NodeName, ReachedNode], seconds: float
) -> tuple[list[_Rank], dict[int, int]]:
    found = group_addresses(group, declared)
    devices = rdma_devices(group, declared) if group.backend == "jaccl" else ()
    free = {name: await _free_ports(nodes[name], declared[name]) for name in dict.fromkeys(group.nodes)}
    if any(len(free[name]) < 2 * group.nodes.count(name) for name in free):
        short = next(name for name in free if len(free[name]) < 2 * group.nodes.count(name))
        raise NoPortsError(f"{short} has too few free ports in {declared[short].ports}; widen nodes.{short}.ports")
    places = [(host, group.nodes[rank]) for rank, host in enumerate(found.links)]
    links = tuple(f"{host}:{free[node].pop()}" for host, node in places)
    doors = tuple(f"{host}:{free[node].pop()}" for host, node in places)
    meeting = Meeting(secrets.token_hex(8), "", links, devices)
    # MLX's ring has each rank call the next one; the others meet at rank 0.
    is_ring = group.backend == "ring"
    callees = {rank: (rank + 1) % group.size if is_ring else 0 for rank in range(group.size) if is_ring or rank}
    ranks = []
    for rank, name in enumerate(group.nodes):
        environment = rank_environment(group, rank, meeting, _FILE)
        argv = [await nodes[name].python(), "-m", "runtime.worker.link", "--rank", str(rank)]
        argv += ["--size", str(group.size), "--backend", group.backend, "--launch", meeting.launch]
        argv += ["--seconds", f"{seconds:g}"]
        if rank < len(doors):
            argv += ["--listen", doors[rank], "--callers", str(list(callees.values()).count(rank))]
        if rank in callees:
            argv += ["--call", doors[callees[rank]]]
        variable = next((key for key, value in environment.items() if value == _FILE), None)
        if variable is not None:
            argv += ["--file-variable", variable]
        ours = {key: value for key, value in environment.items() if key != variable}
        ranks.append(_Rank(nodes[name], tuple(argv), ours, link_file(group, meeting) or ""))
    return ranks, callees


async def _free_ports(node: ReachedNode, declared: Node) -> list[int]:
    """Return the free ports of a node's range, the highest last: an apply takes them from the other end."""
    report = await node.shim.report(None, declared.port_range())
    return [port for port in declared.port_range() if port not in report.ports]


async def _run_all(ranks: list[_Rank], deadline_s: float) -> list[Measured | Failed]:
    tasks = [asyncio.create_task(_run(rank, deadline_s)) for rank in ranks]
    try:
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(isinstance(task.result(), Failed) for task in done):
                if pending:
                    await asyncio.wait(pending, timeout=LAST_WORDS_S)
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [
        Failed(stage="ended", reason="another rank had failed") if task.cancelled() else task.result() for task in tasks
    ]


async def _run(rank: _Rank, deadline_s: float) -> Measured | Failed:
    variables = [f"{key}={value}" for key, value in sorted(rank.environment.items())]
    argv = ["env", *variables, *rank.argv]
    try:
        done = await rank.node.transport.run(argv, input=rank.link_file.encode(), timeout_s=deadline_s)
    except CommandTimeoutError as error:
        return Failed(stage="time", reason=str(error))
    return read_outcome(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
