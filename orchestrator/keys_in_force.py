"""I/O: brings changed keys to the gateway that runs, and makes it read them before the command ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from orchestrator.cluster import Cluster
from orchestrator.delivery import deliver_keys
from orchestrator.expand import expand
from orchestrator.gateway_api import GatewayApi, GatewayError
from orchestrator.readiness import gateway_url
from orchestrator.transport.base import TransportError
from schemas.admin import ConfigReport
from schemas.stack import Stack


@dataclass(frozen=True, slots=True)
class InForce:
    """Whether the keys are those that the gateway asks for now."""

    kind: Literal["now", "later", "failed"]
    """`later`: no gateway runs, and one that starts reads them, or it does not ask for keys before an apply."""
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
    token = cluster.directories.known_admin_token(cluster.stack)
    api = GatewayApi(stack.stack, gateway_url(gateway.bind, gateway.port), node.http, token)
    try:
        report = ConfigReport.from_json(await api.post("/admin/config/reload"))
    except GatewayError as error:
        if error.is_absent:
            return InForce("later", "No gateway answers; one that starts reads the keys.")
        if not error.status:
            return InForce("failed", f"The keys file is written; whether the gateway has read it is unknown: {error}")
        return InForce("failed", f"The keys file is written, but the gateway refuses to read it now: {error}")
    except ValidationError:
        return InForce("failed", f"The keys file is written, but what answers at {api.url} is not understood.")
    return in_force(report)


def in_force(report: ConfigReport) -> InForce:
    """Return what a gateway's report, made right after it has read its files, says of the keys."""
    if report.problems:
        problems = "\n".join(str(problem) for problem in report.problems)
        return InForce("failed", f"The gateway goes by what it had before:\n{problems}")
    if not any(key.startswith("gateway.auth.keys_file") for key in report.routing):
        # A gateway on another machine reads the files that the last apply brought there.
        return InForce("later", f"The gateway asks for no keys yet; orchestrate apply {report.stack}")
    return InForce("now", "In force at the gateway.")
