"""What the routes say after effects that were cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.cluster import reach
from orchestrator.directories import Directories
from orchestrator.effects import RealEffects, Stamp
from orchestrator.expand import nothing
from orchestrator.plan import ActionId, Drain
from orchestrator.transport.base import Completed, NodeTransport
from tests.orchestrator.test_published import LOCAL, NODES, OLD, STACK, Fixture, instance


class SlowTransport:
    """A way to a node whose first file is there before the sender hears of it."""

    def __init__(self, way: NodeTransport) -> None:
        self._way = way
        self.written, self.heard = asyncio.Event(), asyncio.Event()

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        return await self._way.run(argv, input=input, timeout_s=timeout_s)

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        await self._way.push(data, path, mode=mode)
        self.written.set()
        await self.heard.wait()


async def test_what_was_to_make_way_serves_again_when_the_writing_was_cut_short(tmp_path):
    published = Fixture(Directories(tmp_path / "state", tmp_path / "cache"))
    await published.routes.publish(instance(OLD))
    cluster = reach(STACK, NODES, published.cluster.directories)
    slow = SlowTransport(cluster.gateway_node.transport)
    cluster = replace(cluster, nodes={LOCAL: replace(cluster.gateway_node, transport=slow)})
    effects = RealEffects(cluster, nothing(STACK, "/conf", NODES), Stamp(8, None), {})
    drain = Drain(id=ActionId("drain"), node=LOCAL, cause="", unit=OLD, drain_s=0.0, is_replaced=True)
    draining = asyncio.create_task(effects.drain(drain))
    await asyncio.wait_for(slow.written.wait(), 30)
    assert await published.states() == {OLD: "replacing"}
    draining.cancel()
    slow.heard.set()
    await asyncio.wait([draining])
    assert draining.cancelled()
    await effects.settle()
    assert await published.states() == {OLD: "ready"}


async def test_requests_go_on_waiting_where_another_apply_goes_on_with_it(tmp_path):
    published = Fixture(Directories(tmp_path / "state", tmp_path / "cache"))
    await published.routes.publish(instance(OLD))
    await published.routes.retire(OLD, is_replaced=True)
    effects = RealEffects(published.cluster, nothing(STACK, "/conf", NODES), Stamp(8, None), {})
    await effects.settle(is_followed=True)
    assert await published.states() == {OLD: "replacing"}
    await effects.settle()
    assert await published.states() == {}
