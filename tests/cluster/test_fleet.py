"""A group over three hosts behind ssh, with its gateway on one of them: from bare, through losses, and back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.node.client import ShimClient
from tests.cluster.conftest import give_environment
from tests.cluster.fleet import NAME, Fleet
from tests.cluster.lab import Lab, is_alive, poll


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, built_packages: Path, quickstart_cache: Path) -> Iterator[Fleet]:
    """A fleet that is up; each test leaves it as it found it."""
    root = tmp_path_factory.mktemp("fleet")
    lab = Lab(root, root / "orchestrator")
    try:
        made = Fleet(lab, quickstart_cache)
        for host in made.hosts.values():
            give_environment(host, built_packages)
        out = made.run("up", NAME, "--yes").stdout
        assert "Paris" in out, out
        yield made
        made.run("down", NAME, "--yes")
    finally:
        lab.close()


def test_the_group_answers_through_the_gateway_on_its_host(fleet):
    units = fleet.units()
    assert {slot: unit["node"] for slot, unit in units.items()} == {
        "chat-0.0": "one", "chat-0.1": "two", "chat-0.2": "three", "gateway-0.0": "one",
    }  # fmt: skip
    poll(lambda: all(unit["ready"] for unit in fleet.units().values()))  # who answers late counts as not ready
    assert fleet.answers()
    assert "No changes" in fleet.run("plan", NAME).stdout


def test_a_killed_rank_is_replaced_with_its_whole_group_on_fresh_ports(fleet):
    before = fleet.units()
    os.kill(before["chat-0.1"]["pid"], signal.SIGKILL)
    poll(lambda: "chat-0.0" not in fleet.units())
    fleet.run("apply", NAME, "--yes")
    after = fleet.units()
    assert all(after[slot]["pid"] != before[slot]["pid"] for slot in ("chat-0.0", "chat-0.1", "chat-0.2"))
    assert after["gateway-0.0"]["pid"] == before["gateway-0.0"]["pid"]
    assert fleet.answers()


def test_a_host_that_rebooted_is_brought_back(fleet):
    fleet.hosts["three"].reboot()
    poll(lambda: "chat-0.0" not in fleet.units())
    fleet.run("apply", NAME, "--yes")
    assert fleet.answers()


def test_a_group_over_a_host_that_is_cut_off_is_left_alone_and_comes_back(fleet):
    before = fleet.units()
    fleet.hosts["two"].cut()
    try:
        plan = fleet.run("plan", NAME, code=4).stdout
        assert "two" in plan
        assert "what runs there is unknown" in plan
        fleet.run("apply", NAME, "--yes", code=4)
        assert fleet.units().keys() <= before.keys()
    finally:
        fleet.hosts["two"].restore()
    poll(lambda: fleet.run("apply", NAME, "--yes", code=None).returncode == 0, 600)
    assert fleet.answers()


def test_a_host_that_is_cut_off_in_the_middle_of_an_apply_is_told_and_the_next_one_converges(fleet):
    change = "services.chat.max_waiting=48"
    process = fleet.popen("apply", NAME, change, "--yes", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said["type"] == "event" and said["event"] == "ActionStarted" and said["action"]["kind"] == "AwaitReady":
            break
    fleet.hosts["three"].cut()
    try:
        process.communicate(timeout=600)
        assert process.returncode == 4
    finally:
        fleet.hosts["three"].restore()
    poll(lambda: fleet.run("apply", NAME, "--yes", code=None).returncode == 0, 900)
    assert fleet.answers()


async def test_an_apply_from_another_machine_is_refused_by_the_lock_on_the_gateways_host(fleet):
    shim = ShimClient(fleet.hosts["one"].transport())
    async with shim.lock(f"apply-{NAME}", {"actor": "ann@desk", "pid": 17, "command": "apply fleet"}):
        refused = await asyncio.to_thread(fleet.run, "apply", NAME, "services.chat.max_waiting=9", "--yes", code=5)
    assert "ann@desk (pid 17, apply fleet)" in refused.stderr


def test_units_of_a_host_that_left_the_files_are_still_found_and_stopped(fleet):
    """One host takes the place of the group; what ran on the others is ended though no file names them any more."""
    whole = fleet.stack()
    alone = {"model": "smollm2-135m-instruct", "nodes": ["one"], "update": "swap"}
    fewer = {
        **fleet.stack(chat=alone),
        "defaults": [{"/nodes": ["one"]}, {"/models": ["smollm2-135m-instruct"]}, "_self_"],
    }
    pids = [unit["pid"] for slot, unit in fleet.units().items() if slot != "gateway-0.0"]
    fleet.write(fewer)
    try:
        fleet.run("apply", NAME, "--yes")
        assert set(fleet.units()) == {"chat-0.0", "gateway-0.0"}
        assert [pid for pid in pids if is_alive(pid)] == []
        assert fleet.answers()
    finally:
        fleet.write(whole)
        fleet.run("apply", NAME, "--yes")
