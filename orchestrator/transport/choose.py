"""I/O: the transport of a node, as its file says how it is reached."""

from __future__ import annotations

import asyncio
import os
import weakref

from orchestrator.directories import Directories
from orchestrator.transport.base import NodeTransport
from orchestrator.transport.local import LocalTransport
from orchestrator.transport.ssh import CONFIG_VARIABLE, SshTransport
from orchestrator.transport.ssh_words import Destination
from schemas.base import NodeName
from schemas.node import Node

_Key = tuple[object, ...]
_transports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, NodeTransport]] = (
    weakref.WeakKeyDictionary()
)


def transport_to(name: NodeName, node: Node, directories: Directories) -> NodeTransport:
    """Return the way to a node; nothing is connected yet. Inside one event loop a node has one transport.

    Raises ValueError for a node that we only call the endpoints of.
    """
    if node.reach == "none":
        raise ValueError(f"{name}: reach: none")
    config = os.environ.get(CONFIG_VARIABLE) or None
    key: _Key = (name, node.reach, node.host, node.user, directories, config)
    try:
        known = _transports.setdefault(asyncio.get_running_loop(), {})
    except RuntimeError:  # no loop yet: whoever has the transport is the only one
        known = {}
    if key not in known:
        known[key] = _transport(name, node, directories, config)
    return known[key]


def known_hosts(directories: Directories) -> str:
    """Return the path of the host keys that were trusted with `orchestrate node trust`."""
    return str(directories.state / "ssh" / "known_hosts")


def destination(name: NodeName, node: Node) -> Destination:
    """Return whom ssh calls for a node; its own name where the file names no host."""
    return Destination(name, node.host or name, node.user)


def _transport(name: NodeName, node: Node, directories: Directories, config: str | None) -> NodeTransport:
    if node.reach == "local":
        return LocalTransport(name)
    return SshTransport(destination(name, node), directories.state / "ssh" / "known_hosts", config)
