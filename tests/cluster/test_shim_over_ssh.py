"""I/O: the shim's verbs on another host, with its own processes and directories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.node.client import LockedError, LockLostError, ShimClient, ShimError
from orchestrator.node.reports import UnitLaunch, UnitReport
from tests.cluster.lab import Host, Lab, poll

FOREVER = ("sh", "-c", "while read line; do :; done; echo begun; exec sleep 1000")


@pytest.fixture
async def shim(one_host: Host) -> AsyncIterator[ShimClient]:
    client = ShimClient(one_host.transport())
    yield client
    for unit in (await client.report(None)).units:
        await client.stop(unit.stack, unit.unit, grace_s=0)


async def unit_of(shim: ShimClient, name: str) -> UnitReport:
    return next(unit for unit in (await shim.report("lab")).units if unit.unit == name)


async def until(shim: ShimClient, name: str, **wanted: Any) -> UnitReport:
    """Ask until a unit's report is as wanted."""
    async with asyncio.timeout(60):
        while True:
            unit = await unit_of(shim, name)
            if all(getattr(unit, key) == value for key, value in wanted.items()):
                return unit
            await asyncio.sleep(0.05)


async def test_unit_runs_there_and_outlives_every_connection(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    pid = await ShimClient(transport).start(UnitLaunch("lab", "chat-0.0@ab", FOREVER, env={"TOKEN": "secret"}))
    await transport.close()
    host.stop_sshd()
    assert pid in host.pids()
    host.start_sshd()

    shim = ShimClient(host.transport())
    unit = await unit_of(shim, "chat-0.0@ab")
    assert (unit.pid, unit.alive, unit.shim_alive) == (pid, True, True)
    assert (host.state / "units" / "lab" / "chat-0.0@ab" / "record.json").is_file()
    assert await shim.stop("lab", "chat-0.0@ab", grace_s=5)
    assert pid not in host.pids()


async def test_second_start_is_refused_and_a_missing_program_is_named(shim: ShimClient) -> None:
    await shim.start(UnitLaunch("lab", "a", FOREVER))

    with pytest.raises(ShimError, match="already running") as caught:
        await shim.start(UnitLaunch("lab", "a", FOREVER))
    assert caught.value.code == "already_running"
    with pytest.raises(ShimError, match="one: cannot run nothing: No such file"):
        await shim.start(UnitLaunch("lab", "b", ["nothing"]))


async def test_ports_of_the_host_are_its_own(lab: Lab) -> None:
    one, two = ShimClient(lab.add("one").transport()), ShimClient(lab.add("two").transport())
    program = "import socket; s = socket.create_server(('', 18123)); input()"
    argv = ["python3", "-c", f"import sys, os; sys.stdin = os.fdopen(os.pipe()[0]); {program}"]
    await one.start(UnitLaunch("lab", "a", argv))
    async with asyncio.timeout(60):
        while 18123 not in (seen := (await one.report(None, [18123])).ports):
            await asyncio.sleep(0.05)

    assert seen[18123].unit == "a"
    assert (await two.report(None, [18123])).ports == {}


async def test_log_is_followed_to_the_end_of_the_unit(shim: ShimClient) -> None:
    await shim.start(UnitLaunch("lab", "log", ["sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.3; done"]))

    async with shim.logs("lab", "log", lines=10, follow=True) as lines:
        seen = [line async for line in lines]

    assert seen == [b"line 1\n", b"line 2\n", b"line 3\n"]


async def test_follower_that_leaves_leaves_nothing_behind(lab: Lab) -> None:
    host = lab.add("one")
    shim = ShimClient(host.transport())
    await shim.start(UnitLaunch("lab", "a", ["sh", "-c", "echo begun; exec sleep 1000"]))
    before = host.pids()
    async with shim.logs("lab", "a", lines=10, follow=True) as lines:
        assert await anext(lines) == b"begun\n"
        assert host.pids() - before

    await asyncio.to_thread(poll, lambda: host.pids() <= before)


async def test_unit_that_dies_with_its_host_is_lost(lab: Lab) -> None:
    host = lab.add("one")
    await ShimClient(host.transport()).start(UnitLaunch("lab", "a", FOREVER))
    host.reboot()

    unit = await unit_of(ShimClient(host.transport()), "a")
    assert (unit.alive, unit.phase) == (False, "lost")


# -- locks -------------------------------------------------------------------------------------------------------------


async def test_lock_names_its_holder_and_is_free_after_it(one_host: Host) -> None:
    ann, bob = ShimClient(one_host.transport()), ShimClient(one_host.transport())
    async with ann.lock("apply", {"user": "ann"}):
        with pytest.raises(LockedError) as caught:
            async with bob.lock("apply", {"user": "bob"}):
                pass
    assert caught.value.holder == {"user": "ann"}

    async with asyncio.timeout(60):
        async with until_free(bob):
            pass


async def test_lock_vanishes_with_its_holder_s_connection_and_the_holder_learns_it(lab: Lab) -> None:
    host = lab.add("one")
    shim, reached = ShimClient(host.transport()), asyncio.Event()

    async def hold() -> None:
        async with shim.lock("apply", {"user": "ann"}):
            reached.set()
            await asyncio.sleep(1000)

    holding = asyncio.create_task(hold())
    await reached.wait()
    host.stop_sshd()

    with pytest.raises(LockLostError, match="one: the connection that held the lock apply was lost"):
        async with asyncio.timeout(60):
            await holding
    assert not holding.cancelled()

    host.start_sshd()
    async with asyncio.timeout(60):
        async with until_free(ShimClient(host.transport())):
            pass


async def test_cable_that_is_pulled_loses_the_lock_on_both_sides(lab: Lab) -> None:
    """Nobody gets a reset: the holder stops hearing, the node stops hearing, each within its own limit."""
    host = lab.add("one")
    shim = ShimClient(host.transport())

    with pytest.raises(LockLostError):
        async with shim.lock("apply", {"user": "ann"}):
            host.cut()
            await asyncio.sleep(100)
    host.restore()

    async with asyncio.timeout(120):
        async with until_free(ShimClient(host.transport())):
            pass


async def test_cancelling_a_holder_is_no_loss(shim: ShimClient) -> None:
    reached = asyncio.Event()

    async def hold() -> None:
        async with shim.lock("apply", {}):
            reached.set()
            await asyncio.sleep(1000)

    holding = asyncio.create_task(hold())
    await reached.wait()
    holding.cancel()

    with pytest.raises(asyncio.CancelledError):
        await holding
    async with asyncio.timeout(60):
        async with until_free(shim):
            pass


class until_free:  # noqa: N801 - it reads as a verb
    """Hold the lock as soon as it is free."""

    def __init__(self, shim: ShimClient) -> None:
        self._shim = shim

    async def __aenter__(self) -> None:
        while True:
            self._lock = self._shim.lock("apply", {"user": "bob"})
            try:
                return await self._lock.__aenter__()
            except LockedError:
                await asyncio.sleep(0.2)

    async def __aexit__(self, *error: Any) -> None:
        await self._lock.__aexit__(*error)
