"""A host that is off: unknown until somebody says that it is lost, and nothing runs twice when it comes back."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import answering
from tests.cluster.fleet import NAME, Fleet
from tests.cluster.lab import Host, Lab, poll
from tests.ports import free_port

PORT = free_port()
"""Gateways of these tests may listen on this machine, beside those of others."""

SMALL = {"small": {"source": "path:/models/small"}}


def served_on(*nodes: str, **more: Any) -> dict[str, Any]:
    """Return a service of one copy that needs nothing of its node but Python."""
    command = f"{sys.executable} {answering.__file__} {{host}} {{port}}"
    return {"model": "small", "nodes": list(nodes), "engine": "command", "args": {"command": command}, **more}


def copies(host: Host) -> int:
    """Return how many of our servers run on a host."""
    found = 0
    for pid in host.pids():
        try:
            found += answering.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
    return found


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet without a stack yet; what it still runs is stopped at the end."""
    made = Fleet(lab, tmp_path / "cache")
    yield made
    made.run("down", NAME, "--yes", code=None)


def write(fleet: Fleet, gateway: dict[str, Any], **services: dict[str, Any]) -> None:
    """Write a stack whose services need no model; the gateway answers everybody."""
    stack = {
        **fleet.stack(chat=None, **services),
        "defaults": [{"/nodes": [*fleet.hosts, "local"]}, "_self_"],
        "models": SMALL,
        "gateway": {"port": PORT, "auth": "none", "exposed": "accepted", **gateway},
    }
    fleet.write(stack)
    fleet.url = f"http://{gateway['bind']}:{PORT}"


def test_what_ran_on_a_host_that_is_off_is_started_elsewhere_only_when_it_is_assumed_lost(fleet: Fleet) -> None:
    write(fleet, {"node": "local", "bind": fleet.lab.gateway}, coder=served_on("one", "two", replicas=2))
    one, two = fleet.hosts["one"], fleet.hosts["two"]
    fleet.run("apply", NAME, "--yes")
    assert (copies(one), copies(two)) == (1, 1)

    one.shut_down()
    said = fleet.run("plan", NAME, code=4).stdout
    assert "cannot be reached" in said
    assert "what runs there is unknown" in said
    fleet.run("apply", NAME, "--yes", code=4)
    assert copies(two) == 1
    assert fleet.answers()

    fleet.run("apply", NAME, "--yes", "--assume-lost", "one")
    assert copies(two) == 2
    assert fleet.host_of("coder-0.0") is two
    assert fleet.answers()
    assert "coder-0.0" in fleet.run("restart", NAME, "coder", "--yes", "--assume-lost", "one").stdout
    fleet.run("apply", NAME, "--yes", code=4)  # without the option it is unknown again, and what stands in stays
    assert copies(two) == 2

    one.boot()
    refused = fleet.run("plan", NAME, "--assume-lost", "one", code=1).stdout
    assert "the node answers; leave the option out" in refused
    fleet.run("apply", NAME, "--yes")
    assert (copies(one), copies(two)) == (1, 1)
    assert fleet.answers()
    assert "No changes" in fleet.run("plan", NAME).stdout


def test_a_watcher_stands_in_for_a_host_that_is_assumed_lost_until_it_answers(fleet: Fleet) -> None:
    write(fleet, {"node": "local", "bind": fleet.lab.gateway}, coder=served_on("one", "two", replicas=2))
    one, two = fleet.hosts["one"], fleet.hosts["two"]
    fleet.run("apply", NAME, "--yes")
    one.shut_down()
    watching = fleet.popen("watch", NAME, "--json", "--assume-lost", "one")
    try:
        poll(lambda: copies(two) == 2 and fleet.answers(), 180)
        drained = fleet.run("drain", NAME, "coder-0.0", "--yes", "--assume-lost", "one").stdout
        assert "coder-0.0" in drained
        fleet.run("drain", NAME, "coder-0.0", "--undo", "--yes", "--assume-lost", "one")
        assert copies(two) == 2
        one.boot()
        poll(lambda: (copies(one), copies(two)) == (1, 1) and fleet.answers(), 180)
    finally:
        watching.send_signal(signal.SIGTERM)
        told, errors = watching.communicate(timeout=120)
    assert watching.returncode == 0, errors
    assert "one answers: it is not assumed to be lost any more" in told


def test_a_gateway_whose_host_is_lost_moves_and_what_lives_there_is_stopped_when_it_is_back(
    fleet: Fleet, provisioned: Callable[[Host], None]
) -> None:
    one, two, three = fleet.hosts.values()
    for host in (one, two):
        provisioned(host)
    services = {"coder": served_on("three"), "tiny": served_on("one", "three", replicas=2)}
    write(fleet, {"node": "one", "bind": one.address}, **services)
    fleet.run("apply", NAME, "--yes")
    assert fleet.answers()

    one.cut()  # everything there lives on, and nobody sees it
    told = fleet.run("apply", NAME, "--yes", code=4)
    assert "lock that keeps other machines from changing the stack" in told.stderr
    assert "--assume-lost one" in told.stderr
    assert copies(three) == 2

    newer = {**services, "coder": served_on("three", max_batch=2)}
    write(fleet, {"node": "one", "bind": one.address}, **newer)
    before = fleet.units()["coder-0.0"]["unit"]
    told = fleet.run("apply", NAME, "--yes", "--assume-lost", "one", code=4)
    assert "another node serves with gateway.node=NODE" in told.stdout
    assert " failed" not in told.stdout.replace(" 0 failed", "")
    after = fleet.units()
    assert set(after) == {"coder-0.0", "tiny-0.0", "tiny-1.0"}
    assert after["coder-0.0"]["unit"] != before
    assert copies(three) == 3

    write(fleet, {"node": "two", "bind": two.address}, **newer)
    fleet.run("apply", NAME, "--yes", "--assume-lost", "one")
    assert fleet.answers()

    one.restore()
    assert copies(one) == 1
    fleet.run("apply", NAME, "--yes")
    assert {slot: unit["node"] for slot, unit in fleet.units().items()} == {
        "coder-0.0": "three", "gateway-0.0": "two", "tiny-0.0": "one", "tiny-1.0": "three",
    }  # fmt: skip
    assert (copies(one), copies(three)) == (1, 2)
    assert fleet.answers()
    assert "No changes" in fleet.run("plan", NAME).stdout

    two.shut_down()
    assert fleet.run("down", NAME, "--yes", code=4).stderr.count("--assume-lost two") == 1
    fleet.run("down", NAME, "--yes", "--assume-lost", "two")
    poll(lambda: copies(one) == copies(three) == 0)
