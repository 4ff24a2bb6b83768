"""I/O: the nodes of a stack as this process reaches them, and the places where it keeps what it writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.directories import Directories
from orchestrator.models.store import Store
from orchestrator.node.client import ShimClient
from orchestrator.transport.base import NodeTransport
from orchestrator.transport.local import LocalTransport
from schemas.base import NodeName, StackName
from schemas.node import Node


@dataclass(frozen=True, slots=True)
class ReachedNode:
    """One node: its shim, its files, and the address under which its units are called."""

    shim: ShimClient
    transport: NodeTransport
    host: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that effects and observation need to reach one stack."""

    stack: StackName
    directories: Directories
    store: Store
    nodes: Mapping[NodeName, ReachedNode]
    python: str

    def signed(self, actor: str, generation: int) -> Cluster:
        """Return the same cluster, on whose nodes every change is recorded as of this actor and this apply."""
        nodes = {name: replace(node, shim=node.shim.signed(actor, generation)) for name, node in self.nodes.items()}
        return replace(self, nodes=nodes)


def reach(stack: StackName, nodes: Mapping[NodeName, Node], directories: Directories) -> Cluster:
    """Return the way to each node; nothing is connected yet. Only local nodes can be reached so far."""
    return Cluster(
        stack=stack,
        directories=directories,
        store=Store(directories.cache),
        nodes={name: _reach(name, directories) for name, node in nodes.items() if node.reach == "local"},
        python=sys.executable,
    )


def _reach(name: NodeName, directories: Directories) -> ReachedNode:
    transport = LocalTransport(name)
    return ReachedNode(ShimClient(transport, sys.executable, str(directories.state)), transport, "127.0.0.1")
