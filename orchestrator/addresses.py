"""Pure: the addresses at which units listen and are called, by who calls them and from where.

A node's own address, as other machines call it, is the first that there is of `addresses.lan`, the only one in
`addresses`, and `host`. A ring prefers `addresses.tb` where every one of its nodes has it. On one machine everything is
loopback.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.base import NodeName
from schemas.node import Node
from schemas.unit import AnyUnitSpec, EngineSpec, GatewaySpec, GroupSpec, WorkerSpec

LOOPBACK = "127.0.0.1"
LINK_NETWORK = "tb"
"""The network that a ring prefers: Thunderbolt between Macs, or any other direct cable."""


@dataclass(frozen=True, slots=True)
class GroupAddresses:
    """Where the ranks of one group meet; IPv4 addresses, which is all that MLX's ring takes."""

    links: tuple[str, ...]
    """Where each rank listens for the collectives of its peers, in rank order; for JACCL and NCCL rank 0 alone."""
    control: str
    """Where rank 0 listens for the control plane, and for the coordination of JACCL and NCCL."""


class AddressError(ValueError):
    """A group's ranks cannot find each other; every sentence of `problems` names the key to set."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def node_address(node: Node) -> str | None:
    """Return the address under which other machines call a node; None where nothing says it."""
    if "lan" in node.addresses:
        return node.addresses["lan"]
    return next(iter(node.addresses.values())) if len(node.addresses) == 1 else node.host


def called_at(node: NodeName, caller: NodeName, nodes: Mapping[NodeName, Node]) -> str | None:
    """Return the address at which a node calls a unit on another; None for the same machine, which is loopback."""
    return None if node == caller or node not in nodes else node_address(nodes[node])


def url_host(host: str | None) -> str:
    """Return a unit's host as it stands in a URL."""
    host = host or LOOPBACK
    return f"[{host}]" if ":" in host else host


def bind_address(host: str | None) -> str:
    """Return what a unit binds that is called at `host`.

    A name may mean loopback on its own machine, as Debian has it, so behind a name it is all addresses.
    """
    if host is None:
        return LOOPBACK
    return host if _is_ip(host) else "0.0.0.0"  # noqa: S104 - workers answer nobody without the stack's token


def group_addresses(group: GroupSpec, nodes: Mapping[NodeName, Node]) -> GroupAddresses:
    """Return where the ranks of a group meet; raises `AddressError` where a node does not say its IPv4 address."""
    is_ring, first = group.backend == "ring", group.nodes[0]
    if len(set(group.nodes)) == 1:
        return GroupAddresses((LOOPBACK,) * (group.size if is_ring else 1), LOOPBACK)
    control = node_address(nodes[first])
    linked = group.nodes if is_ring else group.nodes[:1]
    has_cable = is_ring and all(LINK_NETWORK in nodes[node].addresses for node in linked)
    links = [nodes[node].addresses[LINK_NETWORK] if has_cable else node_address(nodes[node]) for node in linked]
    asked = [(first, control), *zip(linked, links, strict=True)]
    problems = dict.fromkeys(_no_ipv4(node, found) for node, found in asked if found is None or not _is_ipv4(found))
    if problems or control is None:
        raise AddressError(tuple(problems))
    return GroupAddresses(tuple(link for link in links if link is not None), control)


def rdma_devices(group: GroupSpec, nodes: Mapping[NodeName, Node]) -> tuple[tuple[str | None, ...], ...]:
    """Return the RDMA device from each rank (row) to each other (column), None for itself; raises `AddressError`."""
    problems = tuple(
        f"nodes.{node}.rdma.{peer} is missing: the RDMA device of {node} that leads to {peer}, such as rdma_en2"
        for node in dict.fromkeys(group.nodes)
        for peer in dict.fromkeys(group.nodes)
        if peer != node and peer not in nodes[node].rdma
    )
    doubles = sorted({node for node in group.nodes if group.nodes.count(node) > 1})
    problems += tuple(f"a jaccl group has one rank on a machine: {node} stands several times" for node in doubles)
    if problems:
        raise AddressError(problems)
    return tuple(
        tuple(None if peer == node else nodes[node].rdma[peer] for peer in group.nodes) for node in group.nodes
    )


def address_conflicts(specs: Iterable[AnyUnitSpec], nodes: Mapping[NodeName, Node]) -> list[str]:
    """Return a sentence for every address that the units of a stack need and the files do not say."""
    specs = tuple(specs)
    gateway = next((spec.node for spec in specs if isinstance(spec, GatewaySpec)), None)
    found: dict[str, None] = {}
    for spec in specs:
        if isinstance(spec, WorkerSpec) and spec.group is not None:
            found |= dict.fromkeys(_group_problems(spec, spec.group, nodes))
        is_called = isinstance(spec, EngineSpec) or (isinstance(spec, WorkerSpec) and spec.rank == 0)
        is_elsewhere = gateway is not None and spec.node != gateway and spec.node in nodes
        if is_called and is_elsewhere and node_address(nodes[spec.node]) is None:
            text = (
                f"nodes.{spec.node}.addresses.lan is missing: the gateway on {gateway} calls {spec.slot} there; "
                f"say its address, such as nodes.{spec.node}.addresses.lan=192.168.1.20"
            )
            found[text] = None
    return list(found)


def _group_problems(spec: WorkerSpec, group: GroupSpec, nodes: Mapping[NodeName, Node]) -> tuple[str, ...]:
    if spec.rank != 0 or any(node not in nodes for node in group.nodes):
        return ()
    problems: tuple[str, ...] = ()
    try:
        group_addresses(group, nodes)
    except AddressError as error:
        problems = error.problems
    if group.backend == "jaccl":
        try:
            rdma_devices(group, nodes)
        except AddressError as error:
            problems += error.problems
    return problems


def _no_ipv4(node: NodeName, address: str | None) -> str:
    found = f" (found {address})" if address is not None else ""
    return f"nodes.{node}.addresses.lan is missing: a group over several machines needs IPv4 addresses{found}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_ipv4(text: str) -> bool:
    return _is_ip(text) and ":" not in text
