"""I/O: tells the on-demand workers of every node how much of its memory is theirs.

It is a file of the node, not an argument: another service that is added or goes changes what is left for them, and
replaces none of them. They read it before every load.
"""

from __future__ import annotations

import asyncio
import contextlib

from orchestrator.cluster import Cluster
from orchestrator.expand import Desired
from orchestrator.observed import Observed, Reachable
from orchestrator.sharing import allotments, done_with
from orchestrator.transport.base import TransportError
from schemas.base import NodeName
from schemas.on_demand import Allotment

REMOVE_S = 10.0
"""To remove one small file."""


async def allot(cluster: Cluster, desired: Desired, observed: Observed) -> None:
    """Write the file of each node that answered and has on-demand services.

    A node that cannot be reached any more keeps what it had: the actions of the plan there fail and say so.
    """

    async def write(name: NodeName, allotment: Allotment) -> None:
        node = cluster.nodes[name]
        with contextlib.suppress(TransportError):
            path = (await node.directories()).allotment(cluster.stack)
            await node.transport.push(allotment.model_dump_json().encode(), str(path), mode=0o600)

    found = allotments(desired, observed).items()
    await asyncio.gather(*(write(n, each) for n, each in found if isinstance(observed.nodes.get(n), Reachable)))


async def forget(cluster: Cluster, desired: Desired, observed: Observed) -> None:
    """Remove the file of each node that answered and on which the stack has nothing any more.

    Only once all that was there has stopped: a worker whose file is gone loads nothing. What is not removed now does
    no harm, it takes nothing from anybody.
    """

    async def remove(name: NodeName) -> None:
        node = cluster.nodes[name]
        with contextlib.suppress(TransportError):
            path = (await node.directories()).allotment(cluster.stack)
            await node.transport.run(["rm", "-f", str(path)], timeout_s=REMOVE_S)

    await asyncio.gather(*(remove(name) for name in done_with(desired, observed)))
