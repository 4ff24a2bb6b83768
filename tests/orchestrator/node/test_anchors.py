"""Pure: who parents what is started; and a stand-in for systemd-run that is a real program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.directories import Directories
from orchestrator.node.anchors import anchor_socket, launch_daemon, verb_argv
from orchestrator.node.client import ShimClient
from orchestrator.node.reports import UnitLaunch
from orchestrator.node.site import Site, local_site
from orchestrator.transport.local import LocalTransport
from tests.conftest import Golden
from tests.orchestrator.node.harness import Shim

LINUX = Site("/usr/bin/python3", (3, 11, 2), "/s", "/c", "linux", "x86_64", "/home/ann", "ann", 1000)
MAC = Site("/opt/homebrew/bin/python3.13", (3, 13, 1), "/s", "/c", "macos", "arm64", "/Users/ann", "ann", 501)


def test_without_anybody_else_the_shim_is_run_as_it_is() -> None:
    assert verb_argv(LINUX, "/s/shim.py", "start") == ["/usr/bin/python3", "-S", "/s/shim.py", "start"]


def test_only_start_needs_another_parent() -> None:
    site = replace(LINUX, systemd_run="/usr/bin/systemd-run")

    assert verb_argv(site, "/s/shim.py", "list") == ["/usr/bin/python3", "-S", "/s/shim.py", "list"]
    assert " ".join(verb_argv(site, "/s/shim.py", "start")) == (
        "env XDG_RUNTIME_DIR=/run/user/1000 /usr/bin/systemd-run --user --scope --quiet --collect -- "
        "/usr/bin/python3 -S /s/shim.py start"
    )


def test_mac_with_a_daemon_hands_the_request_to_it() -> None:
    argv = verb_argv(replace(MAC, anchor=anchor_socket(501)), "/s/shim.py", "start")

    assert argv[:2] == ["/opt/homebrew/bin/python3.13", "-c"]
    assert argv[3:] == ["/var/run/orchestrate.501.sock", "/s/shim.py"]


def test_launch_daemon_is_as_it_was_reviewed(golden: Golden) -> None:
    golden.check("anchors/launch_daemon.plist", launch_daemon(MAC).decode())


@pytest.mark.parametrize("script", ['shift 5; exec "$@"', "echo 'Failed to connect to bus' >&2; exit 1"])
async def test_unit_starts_whether_or_not_the_user_manager_answers(shim: Shim, tmp_path: Path, script: str) -> None:
    manager = tmp_path / "systemd-run"
    manager.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n{script}\n")
    manager.chmod(0o755)
    site = replace(local_site(Directories(shim.state, shim.state / "cache")), systemd_run=str(manager))
    client = ShimClient(LocalTransport("here"), site)

    pid = await client.start(UnitLaunch("lab", "a", ("sleep", "1000")))

    (unit,) = (await client.report("lab")).units
    assert (unit.alive, unit.pid) == (True, pid)
    assert (tmp_path / "calls").read_text() == "called\n"


async def test_daemon_s_relay_carries_a_request_and_its_answer(shim: Shim, tmp_path: Path) -> None:
    """launchd's part is played by a server that does what its manual says: one process a connection."""
    import asyncio
    import plistlib

    site = local_site(Directories(shim.state, shim.state / "cache"))
    program = plistlib.loads(launch_daemon(site))["ProgramArguments"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await process.communicate(await reader.read())
        writer.write(answer)
        writer.close()

    socket = tmp_path / "anchor.sock"
    async with await asyncio.start_unix_server(serve, socket):
        client = ShimClient(LocalTransport("here"), replace(site, anchor=str(socket)))
        pid = await client.start(UnitLaunch("lab", "a", ("sleep", "1000"), env={"TOKEN": "x" * 10_000}))

    (unit,) = (await client.report("lab")).units
    assert (unit.alive, unit.pid) == (True, pid)
