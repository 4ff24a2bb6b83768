"""Observation tells one configuration directory from another, by whatever path it is named."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.cluster import reach
from orchestrator.collect import collect
from orchestrator.controller import Controller
from orchestrator.directories import Directories
from orchestrator.expand import nothing
from orchestrator.node.reports import UnitLaunch
from schemas.base import NodeName, StackName
from schemas.node import Node

NODES = {NodeName("local"): Node(reach="local")}
UNIT = "chat-0.0@000000000000"


async def owner_seen(directories: Directories, recorded: Path, asked: Path) -> str | None:
    """Start a unit that says that it was started from `recorded`, and return its owner as `asked` sees it."""
    stack = StackName("s")
    cluster = reach(stack, NODES, directories)
    shim = cluster.nodes[NodeName("local")].shim
    labels = {"owner": str(recorded), "spec": json.dumps(None)}
    await shim.start(UnitLaunch(stack="s", unit=UNIT, argv=["sleep", "1000"], labels=labels))
    try:
        observed = await collect(cluster, nothing(stack, str(asked), NODES))
    finally:
        await shim.stop("s", UNIT, grace_s=5)
    (unit,) = observed.units()
    return unit.owner


async def test_a_directory_behind_a_link_is_the_same_owner(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    (tmp_path / "conf").mkdir()
    (tmp_path / "link").symlink_to("conf")
    link = tmp_path / "link"
    assert await owner_seen(directories, tmp_path / "conf", link) == str(link)


async def test_another_directory_is_another_owner_also_when_it_is_gone(tmp_path):
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    (tmp_path / "conf").mkdir()
    (tmp_path / "other").mkdir()
    assert await owner_seen(directories, tmp_path / "other", tmp_path / "conf") == str(tmp_path / "other")
    assert await owner_seen(directories, tmp_path / "gone", tmp_path / "conf") == str(tmp_path / "gone")


def test_a_directory_named_by_a_way_up_is_the_same_owner(tmp_path):
    (tmp_path / "docs").mkdir()
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    control = Controller(tmp_path / "docs" / ".." / "conf", "s", (), directories)
    assert control.conf == tmp_path / "conf"
