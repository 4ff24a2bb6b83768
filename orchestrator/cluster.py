"""I/O: the nodes of a stack as this process reaches them, and the places where it keeps what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from orchestrator.directories import Directories
from orchestrator.models.store import Store
from orchestrator.node.client import ShimClient
from orchestrator.node.provision import environment
from orchestrator.node.site import Site, local_site
from orchestrator.readiness import PROBE_TIMEOUT_S, client
from orchestrator.transport.base import NodeTransport
from orchestrator.transport.choose import transport_to
from orchestrator.transport.http import NodeHttpTransport
from schemas.base import NodeName, StackName
from schemas.node import Node

CONTROL_TIMEOUT_S = 30.0
"""For a control request that is made on another node: a loaded one may need seconds to start Python."""


@dataclass(frozen=True, slots=True)
class ReachedNode:
    """One node: its shim, its files, and how what listens there is asked. Nothing is connected before it is needed."""

    name: NodeName
    shim: ShimClient
    transport: NodeTransport
    is_local: bool

    async def site(self) -> Site:
        """Return where the node keeps things; raises `TransportError`."""
        return await self.shim.site()

    async def python(self) -> str:
        """Return the interpreter that our programs are run with there; raises `TransportError`."""
        site = await self.site()
        return site.python if site.is_local else environment(site).python

    async def directories(self) -> Directories:
        """Return the roots of state and models there; raises `TransportError`. The paths are the node's."""
        site = await self.site()
        return Directories(Path(site.state), Path(site.cache))

    def http(self) -> httpx.AsyncClient:
        """Return a client whose requests come from the node itself, so that it reaches its loopback too."""
        if self.is_local:
            return client()

        async def python() -> str:
            return (await self.site()).python

        transport = NodeHttpTransport(self.transport, python)
        timeout = httpx.Timeout(PROBE_TIMEOUT_S, connect=CONTROL_TIMEOUT_S)
        return httpx.AsyncClient(transport=transport, timeout=timeout)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that effects and observation need to reach one stack."""

    stack: StackName
    directories: Directories
    """Of this machine: the journal, the worker token, and the store that models are sent from."""
    store: Store
    nodes: Mapping[NodeName, ReachedNode]
    gateway: NodeName
    """The node that the gateway runs on, and with it `routes.json`."""

    @property
    def gateway_node(self) -> ReachedNode:
        """Return the node that the gateway runs on."""
        return self.nodes[self.gateway]

    @property
    def gateway_is_here(self) -> bool:
        """Tell whether the gateway reads the files of this machine."""
        return self.gateway not in self.nodes or self.gateway_node.is_local

    async def routes_path(self) -> str:
        """Return the path of `routes.json` on the gateway's node; raises `TransportError`."""
        return str((await self.gateway_node.directories()).routes(self.stack))

    def signed(self, actor: str, generation: int) -> Cluster:
        """Return the same cluster, on whose nodes every change is recorded as of this actor and this apply."""
        nodes = {name: replace(node, shim=node.shim.signed(actor, generation)) for name, node in self.nodes.items()}
        return replace(self, nodes=nodes)


def reach(
    stack: StackName, nodes: Mapping[NodeName, Node], directories: Directories, gateway: NodeName | None = None
) -> Cluster:
    """Return the way to each node that commands reach; nothing is connected yet.

    `gateway` is the node of the stack's gateway; where it is not known it is this machine, or else the first node.
    """
    reached = {name: _reach(name, node, directories) for name, node in nodes.items() if node.reach != "none"}
    if gateway not in reached:
        gateway = next((name for name, node in reached.items() if node.is_local), next(iter(reached), None))
    return Cluster(stack, directories, Store(directories.cache), reached, gateway or NodeName("local"))


def _reach(name: NodeName, node: Node, directories: Directories) -> ReachedNode:
    transport = transport_to(name, node, directories)
    is_local = node.reach == "local"
    shim = ShimClient(transport, local_site(directories)) if is_local else ShimClient(transport)
    return ReachedNode(name, shim, transport, is_local)
