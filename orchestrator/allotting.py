"""I/O: tells the on-demand workers of every node how much of its memory is theirs.

It is a file of the node, not an argument: another service that is added or goes changes what is left for them, and
replaces none of them. They read it before every load.
"""

from __future__ import annotations

import contextlib

from orchestrator.cluster import Cluster
from orchestrator.expand import Desired
from orchestrator.observed import Observed, Reachable
from orchestrator.sharing import allotments
from orchestrator.transport.base import TransportError


async def allot(cluster: Cluster, desired: Desired, observed: Observed) -> None:
    """Write the file of each node that answered and has on-demand services.

    A node that cannot be reached any more keeps what it had: the actions of the plan there fail and say so.
    """
    for name, allotment in allotments(desired, observed).items():
        if not isinstance(observed.nodes.get(name), Reachable):
            continue
        node = cluster.nodes[name]
        with contextlib.suppress(TransportError):
            path = (await node.directories()).allotment(cluster.stack)
            await node.transport.push(allotment.model_dump_json().encode(), str(path), mode=0o600)
