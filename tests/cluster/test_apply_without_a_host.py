"""A host that cannot take its units: apply says which and why, and what runs elsewhere is started all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fleet import NAME, Fleet
from tests.cluster.lab import Host, Lab
from tests.ports import free_port


@pytest.fixture
def fleet(lab: Lab, quickstart_cache: Path) -> Iterator[Fleet]:
    """A stack whose gateway runs on this machine, and its one worker on a bare host."""
    made = Fleet(lab, quickstart_cache)
    chat = {"model": "smollm2-135m-instruct", "nodes": ["one"]}
    made.write(
        {
            **made.stack(chat=chat),
            "defaults": [{"/nodes": ["one", "local"]}, {"/models": ["smollm2-135m-instruct"]}, "_self_"],
            "gateway": {
                "node": "local",
                "bind": lab.gateway,
                "port": free_port(),
                "auth": "none",
                "exposed": "accepted",
            },
        }
    )
    yield made
    made.run("down", NAME, "--yes", code=None)


def told(fleet: Fleet, *arguments: str, code: int = 4) -> str:
    """Apply, see that the gateway runs, and return what was said."""
    done = fleet.run("apply", NAME, "--yes", *arguments, code=code)
    assert set(fleet.units()) == {"gateway-0.0"}
    return done.stdout + done.stderr


def without_python(host: Host, place: Path) -> None:
    """Let its sessions find a shell and the usual tools, but no Python."""
    place.mkdir()
    for tool in ("sh", "cat", "mkdir", "mv", "rm", "test", "uname", "chmod", "ls"):
        (place / tool).symlink_to(f"/bin/{tool}")
    host.stop_sshd()
    host.start_sshd(PATH=os.fspath(place))


def test_host_without_python(fleet: Fleet, tmp_path: Path) -> None:
    without_python(fleet.hosts["one"], tmp_path / "tools")
    said = told(fleet)
    assert "one" in said
    assert "Python 3.11" in said


def test_host_whose_disk_is_full(fleet: Fleet) -> None:
    host = fleet.hosts["one"]
    host.mount_small_disk(host.state / "env", "64k")
    said = told(fleet)
    assert "one: " in said
    assert "No space left" in said or "disk is full" in said
