"""How the gateway of a stack is asked from the machine of the orchestrator."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.directories import Directories
from orchestrator.gateway_api import client_url, gateway_api
from orchestrator.models.store import Store
from orchestrator.node.client import ShimClient
from orchestrator.transport.local import LocalTransport
from schemas.base import NodeName, StackName
from schemas.stack import Stack
from tests.fakes.upstream import FakeUpstream, refuses
from tests.runtime.gateway.harness import stack_document

FAR = "192.0.2.7"
"""An address for documentation (RFC 5737): nobody answers there."""


@dataclass(frozen=True)
class Site:
    python: str


class Shim:
    """All of a node's shim that is asked for here."""

    async def site(self) -> Site:
        return Site(sys.executable)


def stack_at(port: int, bind: str) -> Stack:
    gateway = {"node": "far", "bind": bind, "port": port, "auth": "none", "exposed": "accepted"}
    nodes = {"far": {"reach": "ssh", "host": FAR}}
    return Stack.model_validate({**stack_document({"a": "http://127.0.0.1:1"}, gateway=gateway), "nodes": nodes})


@pytest.mark.parametrize("bind", ["0.0.0.0", "127.0.0.1"])
async def test_a_gateway_on_another_machine_is_asked_from_there_and_not_over_the_network(
    tmp_path: Path, bind: str
) -> None:
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    name = StackName("lab")
    token = directories.admin_token(name)
    # Commands of this "far" node run here; its address is reached by nobody.
    far = ReachedNode(NodeName("far"), cast(ShimClient, Shim()), LocalTransport("far"), is_local=False)
    cluster = Cluster(name, directories, Store(directories.cache), {far.name: far}, far.name)
    async with FakeUpstream(refuses(200, {"ok": True})) as fake:
        port = int(fake.url.rpartition(":")[2])
        stack = stack_at(port, bind)
        assert await gateway_api(stack, cluster).get("/admin/config") == b'{"ok": true}'
    assert fake.seen[0].headers["authorization"] == f"Bearer {token}"
    assert client_url(stack) == f"http://{FAR if bind == '0.0.0.0' else bind}:{port}", "where others find it"
