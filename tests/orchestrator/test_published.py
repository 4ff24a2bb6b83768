"""What the routes say while a unit is replaced: who takes requests, and for whom they are held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.cluster import reach
from orchestrator.directories import Directories
from orchestrator.expand import nothing
from orchestrator.published import PublishedRoutes, Stamp, read_routes
from schemas.base import ModelName, NodeName, ServiceName, StackName, UnitId
from schemas.node import Node
from schemas.routes import Instance

STACK, LOCAL = StackName("s"), NodeName("local")
NODES = {LOCAL: Node(reach="local")}
OLD, NEW, OTHER = UnitId("chat-0.0@old"), UnitId("chat-0.0@new"), UnitId("chat-1.0@old")


def instance(unit: UnitId) -> Instance:
    return Instance(
        unit=unit,
        node=LOCAL,
        service=ServiceName("chat"),
        model=ModelName("m"),
        url="http://127.0.0.1:1",
        state="ready",
    )


class Fixture:
    def __init__(self, directories: Directories) -> None:
        self.cluster = reach(STACK, NODES, directories)
        self.routes = self.fresh()

    def fresh(self, *drained: str) -> PublishedRoutes:
        """Return a writer that has read nothing yet, as the next apply has."""
        wanted = replace(nothing(STACK, "/conf", NODES), drained=drained)
        return PublishedRoutes(self.cluster, wanted, Stamp(7, "abc"), {})

    async def drained(self) -> tuple[str, ...]:
        found = await read_routes(self.cluster.gateway_node.transport, await self.cluster.routes_path())
        return () if found is None else found.drained

    async def states(self) -> dict[str, str]:
        found = await read_routes(self.cluster.gateway_node.transport, await self.cluster.routes_path())
        return {} if found is None else {entry.unit: entry.state for entry in found.instances}


@pytest.fixture
def published(tmp_path) -> Fixture:
    return Fixture(Directories(tmp_path / "state", tmp_path / "cache"))


async def test_a_successor_takes_the_place_that_requests_are_held_for(published):
    await published.routes.publish(instance(OLD))
    await published.routes.publish(instance(OTHER))
    await published.routes.retire(OLD, is_replaced=True)
    assert await published.states() == {OLD: "replacing", OTHER: "ready"}
    await published.routes.publish(instance(NEW))
    assert await published.states() == {NEW: "ready", OTHER: "ready"}


async def test_beside_a_successor_the_old_one_only_drains(published):
    await published.routes.publish(instance(OLD))
    await published.routes.publish(instance(NEW))
    await published.routes.retire(OLD, is_replaced=False)
    assert await published.states() == {NEW: "ready", OLD: "draining"}


async def test_a_group_that_is_started_again_replaces_its_own_entry(published):
    await published.routes.publish(instance(OLD))
    await published.routes.retire(OLD, is_replaced=True)
    await published.routes.publish(instance(OLD))
    assert await published.states() == {OLD: "ready"}


async def test_nothing_is_held_for_a_successor_that_does_not_come(published):
    await published.routes.publish(instance(OLD))
    await published.routes.publish(instance(OTHER))
    await published.routes.retire(OLD, is_replaced=True)
    await published.fresh().forget_replaced()
    assert await published.states() == {OTHER: "ready"}


async def test_what_an_earlier_apply_wrote_is_kept(published):
    await published.routes.publish(instance(OTHER))
    await published.fresh().publish(instance(OLD))
    assert await published.states() == {OLD: "ready", OTHER: "ready"}


async def test_routes_that_cannot_be_read_are_none(published):
    path = published.cluster.directories.routes(STACK)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert await published.states() == {}


async def test_drained_names_are_written_with_every_change_and_also_without_one(published):
    await published.fresh("chat").publish(instance(OLD))
    assert await published.drained() == ("chat",)
    await published.fresh("chat", "local").mark_drained()
    assert await published.drained() == ("chat", "local")
    await published.fresh().mark_drained()
    assert await published.drained() == ()
    assert await published.states() == {OLD: "ready"}
