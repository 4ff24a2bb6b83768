"""What the routes say after effects that were cut short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from orchestrator.cluster import reach
from orchestrator.directories import Directories
from orchestrator.effects import RealEffects, Stamp
from orchestrator.execute import EffectError
from orchestrator.expand import Desired, DesiredUnit, nothing
from orchestrator.gateways import Gateways, Handover, handover_of
from orchestrator.node.client import ShimClient
from orchestrator.node.reports import UnitLaunch
from orchestrator.node.site import local_site
from orchestrator.plan import ActionId, Drain, Placed, Plan, Publish, Start, Stop
from orchestrator.published import PublishedRoutes
from orchestrator.readiness import GATEWAY_TRIES
from orchestrator.reconcile import GATEWAY_SLOT
from orchestrator.records import PORT_LABEL
from orchestrator.simulate import report as simulated
from orchestrator.transport.base import Completed, NodeTransport, NodeUnreachableError
from schemas.base import NodeName, StackName, UnitId
from schemas.node import Node
from schemas.routes import Instance
from schemas.unit import EngineSpec, GatewaySpec, ModelSpec, unit_id
from tests.fakes.upstream import Exchange, FakeUpstream, stalls
from tests.orchestrator.test_published import LOCAL, NODES, OLD, STACK, Fixture, instance
from tests.runtime.gateway.harness import CHAT, LocalGateway, service_document
from tests.runtime.gateway.harness import instance as entry


class SlowTransport:
    """A way to a node whose first file is there before the sender hears of it."""

    def __init__(self, way: NodeTransport) -> None:
        self._way = way
        self.written, self.heard = asyncio.Event(), asyncio.Event()

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        return await self._way.run(argv, input=input, timeout_s=timeout_s)

    async def read(self, path: str, *, timeout_s: float) -> bytes | None:
        return await self._way.read(path, timeout_s=timeout_s)

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


class Unreachable:
    """A node that answers nothing."""

    async def run(self, _argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        raise NodeUnreachableError("gone", "timed out")


async def test_a_unit_is_stopped_also_where_the_node_of_the_routes_is_lost(tmp_path):
    gone = NodeName("gone")
    nodes = {**NODES, gone: Node(reach="ssh", host="gone.invalid")}
    cluster = reach(STACK, nodes, Directories(tmp_path / "state", tmp_path / "cache"), gone)
    lost = replace(cluster.nodes[gone], transport=Unreachable())
    cluster = replace(cluster, nodes={**cluster.nodes, gone: lost})
    effects = RealEffects(cluster, nothing(STACK, "/conf", nodes), Stamp(8, None), {}, is_routable=False)
    await effects.stop(Stop(id=ActionId("stop"), node=LOCAL, cause="", unit=OLD, grace_s=1.0))
    await effects.settle()


async def test_a_port_that_another_stack_took_since_the_plan_was_made_is_told_before_anything_starts(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    cluster = reach(STACK, NODES, directories)
    shim = cluster.nodes[LOCAL].shim
    await shim.start(UnitLaunch("other", "chat-0.0@1", ("sleep", "1000"), labels={PORT_LABEL: "18100"}))
    try:
        model = ModelSpec(name="m", source="path:/m")
        spec = EngineSpec(
            node=LOCAL, service="chat", replica=0, engine="command", model=model, max_batch=1,
            args={"command": "sleep {port}"},
        )  # fmt: skip
        unit = DesiredUnit(spec, unit_id(spec), "auto", None, 10.0, 1.0)
        start = Start(id=ActionId("start"), node=LOCAL, cause="", units=(Placed(unit, 18100),))
        effects = RealEffects(cluster, nothing(STACK, "/conf", NODES), Stamp(8, None), {})
        with pytest.raises(EffectError, match=r"port 18100 on local was taken by unit chat-0\.0@1 of stack other"):
            await effects.start(start)
        assert [report.stack for report in (await shim.report(None)).units if report.alive] == ["other"]
    finally:
        await shim.stop("other", "chat-0.0@1", grace_s=1.0)


async def test_requests_go_on_waiting_where_another_apply_goes_on_with_it(tmp_path):
    published = Fixture(Directories(tmp_path / "state", tmp_path / "cache"))
    await published.routes.publish(instance(OLD))
    await published.routes.retire(OLD, is_replaced=True)
    effects = RealEffects(published.cluster, nothing(STACK, "/conf", NODES), Stamp(8, None), {})
    await effects.settle(is_followed=True)
    assert await published.states() == {OLD: "replacing"}
    await effects.settle()
    assert await published.states() == {}


LAB = StackName("lab")


def with_gateway(port: int) -> Desired:
    """Return the desired state of a stack of which only the gateway is wanted."""
    spec = GatewaySpec(node=LOCAL, bind="127.0.0.1", port=port)
    unit = DesiredUnit(spec, unit_id(spec), "swap", None, 10.0, 0.0)
    return replace(nothing(LAB, "/conf", NODES), units={GATEWAY_SLOT: unit})


def effects_at(port: int, directories: Directories, *leaving: UnitId) -> RealEffects:
    """Return the effects of a plan that finds two gateways at a port, where it stops one."""
    handover = Handover(frozenset(leaving))
    return RealEffects(reach(LAB, NODES, directories), with_gateway(port), Stamp(8, None), {}, handover=handover)


@contextlib.asynccontextmanager
async def gateway_that_waits(directories: Directories) -> AsyncIterator[LocalGateway]:
    """Run a gateway that reads its files when it is told to, and never by itself."""
    gateway = LocalGateway(service_document("a"))
    gateway.token = directories.admin_token(LAB)
    await gateway.start(directories.stack(LAB))
    try:
        yield gateway
    finally:
        await gateway.stop()


async def status_of_chat(gateway: LocalGateway) -> int:
    async with gateway.client() as client:
        return (await client.post("/v1/chat/completions", json=CHAT)).status_code


def draining(unit: UnitId, drain_s: float = 3600.0) -> Drain:
    return Drain(id=ActionId("drain"), node=LOCAL, cause="", unit=unit, drain_s=drain_s, is_replaced=False)


def stopping(unit: UnitId) -> Stop:
    return Stop(id=ActionId("stop"), node=LOCAL, cause="", unit=unit, grace_s=1.0)


def publishing(url: str) -> Publish:
    there = Instance.model_validate(entry("a", url))
    return Publish(id=ActionId("publish"), node=LOCAL, cause="", instance=there)


async def test_what_an_action_writes_is_served_when_it_is_done(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    async with FakeUpstream() as upstream, gateway_that_waits(directories) as gateway:
        effects, publish = effects_at(gateway.port, directories), publishing(upstream.url)
        assert await status_of_chat(gateway) == 503
        await effects.publish(publish)
        assert await status_of_chat(gateway) == 200
        await effects.drain(draining(publish.instance.unit))
        assert await status_of_chat(gateway) == 503


async def test_a_gateway_that_came_up_meanwhile_is_told_at_the_end(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    async with FakeUpstream() as upstream, gateway_that_waits(directories) as gateway:
        writer = PublishedRoutes(reach(LAB, NODES, directories), nothing(LAB, "/conf", NODES), Stamp(8, None), {})
        await writer.publish(publishing(upstream.url).instance)  # it had read its files, and did not listen yet
        assert await status_of_chat(gateway) == 503
        await effects_at(gateway.port, directories).settle()
        assert await status_of_chat(gateway) == 200


async def test_a_gateway_that_does_not_answer_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.readiness.RELOAD_S", 0.2)
    async with FakeUpstream(stalls) as stuck:
        effects = effects_at(stuck.port, Directories(tmp_path / "state", tmp_path / "cache"))
        await effects.publish(publishing("http://127.0.0.1:1"))
        await effects.publish(publishing("http://127.0.0.1:2"))
        await effects.settle()
        assert [seen.path for seen in stuck.seen] == ["/admin/config/reload"]


OLD_GATEWAY = UnitId(f"{GATEWAY_SLOT}@old")


class FakeGateways:
    """What listens at a gateway's port: `answers` is called with each question's path and its connection's number."""

    def __init__(self, answers: Callable[[str, int], int | None]) -> None:
        """It returns the pid of the gateway that answers, None for one that hangs up without an answer."""
        self.answers = answers

    async def __call__(self, exchange: Exchange) -> None:
        pid = self.answers(exchange.seen.path, exchange.seen.connection)
        if pid is None:
            exchange.reset()
        else:
            said = simulated(with_gateway(1)).model_copy(update={"pid": pid})
            await exchange.answer(200, said.model_dump_json().encode())


async def test_of_two_gateways_that_share_a_port_both_have_read_what_was_written(tmp_path):
    told: list[int] = []

    def one_after_the_other(path: str, connection: int) -> int:
        pid = 1 if connection <= 2 else 2
        if path.endswith("/reload"):
            told.append(pid)
        return pid

    async with FakeUpstream(FakeGateways(one_after_the_other)) as port:
        effects = effects_at(port.port, Directories(tmp_path / "state", tmp_path / "cache"), OLD_GATEWAY)
        await effects.publish(publishing("http://127.0.0.1:1"))
        assert told == [1, 2]
        await effects.stop(stopping(OLD_GATEWAY))
        await effects.publish(publishing("http://127.0.0.1:2"))
        assert told == [1, 2, 2]


class HeldShim(ShimClient):
    """A node on which what is told to end does so when it may."""

    def __init__(self, transport: NodeTransport, directories: Directories) -> None:
        super().__init__(transport, local_site(directories))
        self.is_told, self.may_end = asyncio.Event(), asyncio.Event()

    async def stop(self, stack: str, unit: str, *, grace_s: float) -> bool:
        self.is_told.set()
        await self.may_end.wait()
        return True


async def test_a_worker_is_not_stopped_while_the_gateway_before_finishes_what_it_has(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    cluster = reach(LAB, NODES, directories)
    shim = HeldShim(cluster.gateway_node.transport, directories)
    cluster = replace(cluster, nodes={LOCAL: replace(cluster.gateway_node, shim=shim)})
    questions = 0

    def nothing_in_flight(path: str, _connection: int) -> int:
        nonlocal questions
        questions += path == "/admin/config" and shim.is_told.is_set()
        if questions > 2 * GATEWAY_TRIES:  # it was asked again, after it had said that it has nothing
            shim.may_end.set()
        return 2

    async with FakeUpstream(FakeGateways(nothing_in_flight)) as port:
        wanted = with_gateway(port.port)
        handover = Handover(frozenset({OLD_GATEWAY}))
        effects = RealEffects(cluster, wanted, Stamp(8, None), {}, handover=handover)
        publish = publishing("http://127.0.0.1:1")
        await effects.publish(publish)
        ending = asyncio.create_task(effects.stop(stopping(OLD_GATEWAY)))
        await asyncio.wait_for(shim.is_told.wait(), 30)
        await asyncio.wait_for(effects.drain(draining(publish.instance.unit)), 60)
        assert shim.may_end.is_set(), "the worker was given up while the old gateway may have had requests there"
        await asyncio.wait_for(ending, 30)


async def test_a_gateway_that_gives_no_answer_is_not_taken_for_one_without_requests(tmp_path):
    questions: list[int] = []

    def says_nothing_at_first(path: str, connection: int) -> int | None:
        if path == "/admin/config":
            questions.append(connection)
        return None if len(questions) == 1 else 1

    async with FakeUpstream(FakeGateways(says_nothing_at_first)) as port:
        effects, publish = effects_at(port.port, Directories(tmp_path, tmp_path)), publishing("http://127.0.0.1:1")
        await effects.publish(publish)
        await asyncio.wait_for(effects.drain(draining(publish.instance.unit)), 60)
        assert len(questions) == 2


async def test_where_no_gateway_listens_nothing_is_waited_for(tmp_path):
    effects, publish = effects_at(1, Directories(tmp_path, tmp_path)), publishing("http://127.0.0.1:1")
    await effects.publish(publish)
    await asyncio.wait_for(effects.drain(draining(publish.instance.unit)), 60)


async def test_a_gateway_is_asked_once_until_its_successor_was_started(tmp_path):
    asked: list[str] = []

    def alone(path: str, _connection: int) -> int:
        asked.append(path)
        return 1

    async with FakeUpstream(FakeGateways(alone)) as port:
        cluster, handover = reach(LAB, NODES, Directories(tmp_path, tmp_path)), Handover(frozenset({OLD_GATEWAY}), True)
        gateways = Gateways(cluster, with_gateway(port.port), handover)
        await gateways.follow()
        assert await gateways.in_flight("http://127.0.0.1:1") == 0
        gateways.started(OLD)
        assert len(asked) == 2
        gateways.started(UnitId(f"{GATEWAY_SLOT}@new"))
        await gateways.follow()
        assert len(asked) == 2 + GATEWAY_TRIES


def test_a_plan_tells_which_gateways_leave_and_whether_one_is_started():
    wanted = with_gateway(1)
    unit = wanted.units[GATEWAY_SLOT]
    start = Start(id=ActionId("start"), node=LOCAL, cause="", units=(Placed(unit, 1),))
    actions = (stopping(OLD_GATEWAY), stopping(OLD))
    assert handover_of(Plan(stack=LAB, actions=actions)) == Handover(frozenset({OLD_GATEWAY}), starts=False)
    assert handover_of(Plan(stack=LAB, actions=(start,))) == Handover(frozenset(), starts=True)
