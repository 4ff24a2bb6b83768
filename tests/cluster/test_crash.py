"""The controller is killed while it makes another host ready: nothing half is used there, and apply ends it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.fleet import NAME, Fleet
from tests.cluster.lab import Lab, is_alive, poll
from tests.cluster.test_provision import builders


def kill_during(fleet: Fleet, kind: str, *phases: str) -> None:
    """Run apply and kill it with SIGKILL in the middle of an action of a kind."""
    process = fleet.popen("apply", NAME, "--yes", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said["type"] != "event" or said["action"]["kind"] != kind:
            continue
        assert said["event"] not in ("ActionDone", "ActionFailed"), said
        if said["event"] == "ActionProgress" and said["phase"] in phases:
            break
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, f"{kind} never came so far: {errors}"


def test_killed_while_a_host_gets_its_environment_and_its_model(
    lab: Lab, built_packages: Path, quickstart_cache: Path
) -> None:
    fleet = Fleet(lab, quickstart_cache)
    host = fleet.hosts["one"]
    chat = {"model": "smollm2-135m-instruct", "nodes": ["one"]}
    defaults = [{"/nodes": ["one"]}, {"/models": ["smollm2-135m-instruct"]}, "_self_"]
    fleet.write({**fleet.stack(chat=chat), "defaults": defaults})
    packages, models = host.state / "env" / "packages", host.state / "cache" / "models"

    kill_during(fleet, "Provision", "prepare", "download")
    poll(lambda: not builders(host), 60)
    assert not packages.exists() or not [each for each in packages.iterdir() if not each.name.startswith(".")]

    packages.mkdir(parents=True, exist_ok=True)
    for each in (built_packages / "packages").iterdir():
        (packages / each.name).symlink_to(each)  # so that the rest takes seconds
    kill_during(fleet, "Sync", "copy")
    assert not list(models.glob("*/*"))

    try:
        fleet.run("apply", NAME, "--yes")
        assert "No changes" in fleet.run("plan", NAME).stdout
        assert "all files are whole" in fleet.run("models", "verify", NAME).stdout
        assert {slot for slot, unit in fleet.units().items() if is_alive(unit["pid"])} == {"chat-0.0", "gateway-0.0"}
        assert fleet.answers()
    finally:
        fleet.run("down", NAME, "--yes", code=None)
