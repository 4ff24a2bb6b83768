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
from orchestrator.sharing import allotments
from orchestrator.transport.base import TransportError
from schemas.base import NodeName
from schemas.on_demand import Allotment


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
