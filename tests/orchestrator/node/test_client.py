"""I/O: the typed client against the real shim on this machine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from orchestrator.directories import Directories
from orchestrator.node.client import LockedError, ShimClient, ShimError
from orchestrator.node.reports import UnitLaunch
from orchestrator.node.site import Site, local_site
from orchestrator.transport.local import LocalTransport
from tests.orchestrator.node.harness import Shim, is_running

FOREVER = ("sleep", "1000")


def here(shim: Shim) -> Site:
    return local_site(Directories(shim.state, shim.state / "cache"))


@pytest.fixture
async def client(shim: Shim) -> AsyncIterator[ShimClient]:
    yield ShimClient(LocalTransport("here"), here(shim))


async def test_unit_is_started_reported_and_stopped(client: ShimClient) -> None:
    launch = UnitLaunch("lab", "chat-0.0@ab", FOREVER, env={"TOKEN": "secret"}, labels={"a": "b"})

    pid = await client.start(launch)

    report = await client.report("lab", ports=[1])
    (unit,) = report.units
    assert (unit.stack, unit.unit, unit.pid, unit.alive, unit.phase) == ("lab", "chat-0.0@ab", pid, True, "running")
    assert (unit.labels, unit.log_tail) == ({"a": "b"}, "")
    assert report.ports == {}
    assert report.node.cpu_count > 0
    assert (await client.report("another")).units == ()
    assert await client.stop("lab", "chat-0.0@ab", grace_s=5)
    assert not await client.stop("lab", "chat-0.0@ab", grace_s=5)
    assert not is_running(pid)
    assert await client.gc("lab", keep=[]) == ("chat-0.0@ab",)
    assert "secret" not in repr(launch)


async def test_refusals_carry_node_and_code(client: ShimClient) -> None:
    await client.start(UnitLaunch("lab", "a", FOREVER))

    with pytest.raises(ShimError, match="here: lab/a is already running") as caught:
        await client.start(UnitLaunch("lab", "a", FOREVER))
    assert (caught.value.node, caught.value.code) == ("here", "already_running")
    with pytest.raises(ShimError, match="cannot run nothing: No such file") as caught:
        await client.start(UnitLaunch("lab", "b", ["nothing"]))
    assert caught.value.code == "exec_failed"


async def test_shim_is_pushed_by_content_and_again_when_it_is_gone(client: ShimClient, shim: Shim) -> None:
    await asyncio.gather(*(client.report(None) for _ in range(3)))
    (pushed,) = (shim.state / "shim").glob("*/shim.py")
    written = pushed.stat().st_mtime_ns

    again = ShimClient(LocalTransport("here"), here(shim))
    await again.report(None)
    assert pushed.stat().st_mtime_ns == written

    shutil.rmtree(shim.state / "shim")
    assert (await again.report(None)).units == ()
    assert pushed.exists()


async def test_python_that_is_missing_on_the_node_is_named(shim: Shim) -> None:
    client = ShimClient(LocalTransport("here"), replace(here(shim), python="python9"))

    with pytest.raises(ShimError, match=r"here: python9 .* exited with 127: python9: not found"):
        await client.doctor()


async def test_doctor_reports_the_interpreter(client: ShimClient) -> None:
    found = await client.doctor()

    assert "python" in found.executable
    assert found.locks_work


async def test_lock_is_exclusive_names_its_holder_and_is_given_back(client: ShimClient) -> None:
    async with client.lock("apply", {"user": "ann"}):
        with pytest.raises(LockedError) as caught:
            async with client.lock("apply", {"user": "bob"}):
                pass
        assert caught.value.holder == {"user": "ann"}

    with pytest.raises(ZeroDivisionError):
        async with client.lock("apply", {}):
            raise ZeroDivisionError
    async with client.lock("apply", {}):
        pass


async def read_logs(client: ShimClient, unit: str, *, follow: bool) -> list[bytes]:
    async with client.logs("lab", unit, lines=50, follow=follow) as lines:
        return [line async for line in lines]


async def test_logs_come_as_lines(client: ShimClient) -> None:
    await client.start(UnitLaunch("lab", "a", ["sh", "-c", "echo one; sleep 0.3; echo two"]))

    assert await read_logs(client, "a", follow=True) == [b"one\n", b"two\n"]
    assert await read_logs(client, "a", follow=False) == [b"one\n", b"two\n"]


async def test_log_that_looks_like_a_refusal_is_still_a_log(client: ShimClient) -> None:
    line = '{"version": 1, "ok": false}'
    await client.start(UnitLaunch("lab", "a", ["echo", line]))

    assert await read_logs(client, "a", follow=True) == [line.encode() + b"\n"]


async def test_logs_of_an_unknown_unit_are_an_error(client: ShimClient) -> None:
    with pytest.raises(ShimError) as caught:
        await read_logs(client, "nobody", follow=False)

    assert caught.value.code == "no_such_unit"
