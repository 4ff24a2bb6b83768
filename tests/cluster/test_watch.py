"""A watcher and machines that go away: a reboot, a pulled cable. No apply is run."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import give_environment
from tests.cluster.fleet import NAME, Fleet
from tests.cluster.lab import Lab, poll

DEADLINE_S = 300.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, built_packages: Path, quickstart_cache: Path) -> Iterator[Fleet]:
    """One worker on `two` behind the gateway on `one`; each test leaves it serving."""
    root = tmp_path_factory.mktemp("watched-fleet")
    lab = Lab(root, root / "orchestrator")
    try:
        made = Fleet(lab, quickstart_cache)
        made.write(made.stack(chat={"model": "smollm2-135m-instruct", "nodes": ["two"], "ready_timeout_s": 300}))
        for host in made.hosts.values():
            give_environment(host, built_packages)
        made.run("up", NAME, "--yes")
        yield made
        made.run("down", NAME, "--yes")
    finally:
        lab.close()


class Told:
    """A watcher of the fleet, and what it tells."""

    def __init__(self, fleet: Fleet) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = fleet.popen("watch", NAME, "--json")
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def has(self, kind: str, words: str = "") -> bool:
        return any(line["event"] == kind and words in line["text"] for line in list(self.lines))

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self._reading.join(120)  # to the end of what is told, which two cannot read at the same time
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors


@pytest.fixture
def watching(fleet: Fleet) -> Iterator[Told]:
    told = Told(fleet)
    report = fleet.lab.state / "stacks" / NAME / "watcher.json"
    try:
        poll(lambda: report.exists() and json.loads(report.read_text())["pid"] == told.process.pid, DEADLINE_S)
        yield told
    finally:
        told.close()


def answers(fleet: Fleet) -> bool:
    try:
        return fleet.answers()
    except httpx.HTTPError:
        return False


def test_a_node_that_reboots_serves_again_by_itself(fleet, watching):
    before = fleet.units()["chat-0.0"]["pid"]
    fleet.hosts["two"].reboot()
    poll(lambda: watching.has("mended") and answers(fleet), DEADLINE_S)
    assert fleet.units()["chat-0.0"]["pid"] != before
    assert "watch" in fleet.run("history", NAME).stdout


def test_the_gateways_node_reboots_and_serves_again(fleet, watching):
    fleet.hosts["one"].reboot()
    poll(lambda: watching.has("mended") and answers(fleet), DEADLINE_S)


def test_a_node_behind_a_pulled_cable_is_unknown_and_nothing_of_it_is_started_twice(fleet, watching):
    before = fleet.units()["chat-0.0"]["pid"]
    fleet.hosts["two"].cut()
    try:
        poll(lambda: watching.has("problem", "two"), DEADLINE_S)
    finally:
        fleet.hosts["two"].restore()
    poll(lambda: watching.has("note", "nothing is in the way") and answers(fleet), DEADLINE_S)
    assert fleet.units()["chat-0.0"]["pid"] == before


def test_a_worker_killed_on_another_machine_is_heard_of_at_once(fleet, watching):
    pid = fleet.units()["chat-0.0"]["pid"]
    os.kill(pid, signal.SIGKILL)
    poll(lambda: watching.has("change", "killed by SIGKILL") and answers(fleet), DEADLINE_S)
    lines = [json.loads(line) for line in fleet.run("history", NAME, "--audit", "--json").stdout.splitlines()]
    by_watch = [line for line in lines if line["node"] == "two" and line["actor"] == "watch"]
    assert [line["verb"] for line in by_watch if line["verb"] == "start"]
    assert [line for line in lines if line["verb"] == "end" and line["outcome"] == "died"]
