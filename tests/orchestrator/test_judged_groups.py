"""What becomes of a group that its canary cannot judge, and of the process that makes what it is judged by."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.awaiting import Awaiter
from orchestrator.cluster import Cluster, reach
from orchestrator.collect import collect
from orchestrator.directories import Directories
from orchestrator.execute import EffectError, Progress
from orchestrator.expand import Desired, DesiredUnit, nothing
from orchestrator.groups import slots_of
from orchestrator.node.reports import UnitLaunch
from orchestrator.plan import ActionId, AwaitReady, Placed
from orchestrator.records import unit_labels
from orchestrator.references import References
from orchestrator.transport.base import Completed, NodeTransport, Stream
from schemas.exits import CANARY_FAILED
from schemas.unit import GroupSpec, ModelSpec, WorkerSpec, unit_id
from tests.orchestrator.test_published import LOCAL, NODES, STACK
from tests.ports import free_port

GROUP = GroupSpec(backend="ring", strategy="tensor", nodes=(LOCAL,))
SPEC = WorkerSpec(
    node=LOCAL, service="chat", replica=0, rank=0, model=ModelSpec(name="m", source="path:/m"), max_batch=1,
    max_waiting=0, group=GROUP,
)  # fmt: skip
UNIT = DesiredUnit(SPEC, unit_id(SPEC), "auto", None, 60.0, 1.0)

PROGRAM = f"""
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def say(self, status, document):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def do_GET(self):
        said = {{"model": "m", "is_ready": True, "phase": "ready", "progress": None}}
        if len(sys.argv) > 2:
            said["canary"] = {{"outcome": sys.argv[2]}}
        self.say(200, said)

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/canary":
            self.say(200, {{}})
            if content["outcome"] == "failed":
                os._exit({CANARY_FAILED})
        self.say(503, {{"error": "the model is out of order"}})

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def report(_: Progress) -> None:
    pass


async def begin(cluster: Cluster, *verdict: str) -> None:
    """Start a group of one rank that is loaded and answers nothing that it is asked."""
    port = free_port()
    argv = [sys.executable, "-c", PROGRAM, str(port), *verdict]
    labels = unit_labels(Placed(UNIT, port), "/conf", 1, "launch")
    await cluster.nodes[LOCAL].shim.start(UnitLaunch(STACK, UNIT.id, argv, labels=labels))


def wanted() -> Desired:
    return replace(nothing(STACK, "/conf", NODES), units={SPEC.slot: UNIT})


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return reach(STACK, NODES, Directories(tmp_path / "state", tmp_path / "cache"))


@pytest.mark.slow
async def test_a_group_that_does_not_answer_its_canary_ends_by_itself_and_counts_as_crashed(cluster: Cluster) -> None:
    shim = cluster.nodes[LOCAL].shim
    await begin(cluster)
    try:
        awaiter = Awaiter(cluster, wanted(), References(cluster))
        action = AwaitReady(
            id=ActionId("ready"), node=LOCAL, cause="", unit=UNIT.id, timeout_s=60.0, long_tokens=16, is_limited=True
        )
        with pytest.raises(EffectError, match=r"sharding\.canary: off") as failure:
            await awaiter.until_ready(action, report)
        assert failure.value.next_step == ("logs", STACK, "chat-0.0")
        (unit,) = (await shim.report(STACK)).units
        assert (unit.alive, unit.exit_code) == (False, CANARY_FAILED)
        observed = await collect(cluster, wanted())
        assert slots_of(wanted(), observed)["chat-0"].restart().crashes == 1
    finally:
        await shim.stop(STACK, UNIT.id, grace_s=1.0)


@pytest.mark.slow
async def test_a_group_at_work_that_cannot_be_judged_again_now_serves_on(cluster: Cluster) -> None:
    shim = cluster.nodes[LOCAL].shim
    await begin(cluster, "off")
    try:
        awaiter = Awaiter(cluster, wanted(), References(cluster))
        action = AwaitReady(
            id=ActionId("judge"), node=LOCAL, cause="", unit=UNIT.id, timeout_s=60.0, long_tokens=16, is_limited=True,
            is_serving=True,
        )  # fmt: skip
        with pytest.raises(EffectError, match=r"could not be judged now: .* it serves on"):
            await awaiter.until_ready(action, report)
        (unit,) = (await shim.report(STACK)).units
        assert unit.alive
    finally:
        await shim.stop(STACK, UNIT.id, grace_s=1.0)


async def test_a_group_that_failed_its_canary_is_not_ready_while_it_still_answers(cluster: Cluster) -> None:
    shim = cluster.nodes[LOCAL].shim
    await begin(cluster, "failed")
    try:
        async with asyncio.timeout(60):
            while not (unit := (await collect(cluster, wanted())).units()[0]).verdict:
                await asyncio.sleep(0.1)
        assert unit.alive
        assert not unit.ready
    finally:
        await shim.stop(STACK, UNIT.id, grace_s=1.0)


class Stuck:
    """A way to a node on which what is to tell of its progress never does."""

    def __init__(self, way: NodeTransport) -> None:
        self._way = way

    async def run(self, _argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        return Completed(0, b"digest", b"")

    def stream(self, _argv: Sequence[str], *, input: bytes = b"") -> AbstractAsyncContextManager[Stream]:  # noqa: A002
        return self._way.stream(["sleep", "600"])


async def test_a_reference_that_gets_no_further_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    model = ModelSpec(name="m", source=f"path:{tmp_path / 'm'}")
    node = cluster.nodes[LOCAL]
    stuck = replace(node, transport=Stuck(node.transport))
    with pytest.raises(EffectError, match=r"got no further on local.*models\.m\.memory_gib"):
        await References(cluster).make(stuck, model, 16, report, idle_s=0.2)
