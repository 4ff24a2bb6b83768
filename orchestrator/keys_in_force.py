"""I/O: brings changed keys to the gateway that runs, and makes it read them before the command ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.cluster import Cluster
from orchestrator.delivery import deliver_keys
from orchestrator.expand import expand
from orchestrator.readiness import reload_gateway
from orchestrator.transport.base import TransportError
from schemas.stack import Stack


@dataclass(frozen=True, slots=True)
class InForce:
    """Whether the keys are those that the gateway asks for now."""

    kind: Literal["now", "later", "failed"]
    """`later`: no gateway runs; one that starts reads them."""
    words: str


async def bring_into_force(stack: Stack, cluster: Cluster, owner: str) -> InForce:
    """Deliver the keys where the gateway is on another machine, and let it read them; `owner` is the configuration."""
    node, gateway = cluster.nodes.get(stack.gateway.node), stack.gateway
    if node is None:
        return InForce("later", f"Node {gateway.node} is not reached by commands; its gateway reads the file itself.")
    try:
        if not node.is_local:
            await deliver_keys(node, expand(stack, owner))
    except TransportError as error:
        message = (
            f"The keys file is written, but not brought to {gateway.node}: {error}\n"
            f"Until `orchestrate apply {stack.stack}` has done that, the gateway there goes by the keys from before."
        )
        return InForce("failed", message)
    report = await reload_gateway(
        node.http, gateway.bind, gateway.port, cluster.directories.known_admin_token(cluster.stack)
    )
    if report is None:
        return InForce("later", "No gateway answers; one that starts reads the keys.")
    if report.problems:
        problems = "\n".join(str(problem) for problem in report.problems)
        return InForce("failed", f"The gateway goes by what it had before:\n{problems}")
    return InForce("now", "In force at the gateway.")
