"""`probe links` with real ranks on this machine: nothing is applied, no model is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import reach
from orchestrator.directories import Directories
from orchestrator.link_verdict import Failed
from orchestrator.links import probe_links
from schemas.base import NodeName, StackName
from schemas.node import Node
from schemas.unit import GroupSpec
from tests.e2e.trial import Trial
from tests.ports import free_range

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def unapplied(tmp_path: Path) -> Iterator[Trial]:
    """Return the stack of three ranks, with nothing of it running."""
    (tmp_path / "trial" / "state").mkdir(parents=True)
    trial = Trial(tmp_path / "trial", tmp_path / "trial" / "state", "trio")
    yield trial
    trial.close()


def test_three_ranks_add_up_right_and_leave_nothing_behind(unapplied):
    (line,) = unapplied.json("probe", "links", "trio", "--seconds", "1")
    assert line["well"], line
    assert [rank["rank"] for rank in line["ranks"]] == [0, 1, 2]
    assert {rank["measured"]["wrong"] for rank in line["ranks"]} == {0}
    assert len({rank["measured"]["stress_rounds"] for rank in line["ranks"]}) == 1
    assert unapplied.units() == {}


def test_a_service_without_a_group_is_a_usage_error_that_names_those_with_one(unapplied):
    done = unapplied.run("probe", "links", "trio", "nothing", code=64)
    assert "sharded services: chat" in done.stderr


async def test_an_address_that_is_not_the_nodes_own_is_named_and_its_peer_is_ended(tmp_path):
    first, last = free_range(8)
    addresses = {"one": "127.0.0.1", "two": "192.0.2.1"}
    nodes = {
        NodeName(name): Node(reach="local", addresses={"lan": address}, ports=f"{first}-{last}")
        for name, address in addresses.items()
    }
    group = GroupSpec(backend="ring", strategy="tensor", nodes=tuple(nodes))
    reached = reach(StackName("pair"), nodes, Directories(tmp_path, tmp_path / "cache")).nodes
    outcomes, findings = await probe_links(group, nodes, reached, 1)
    assert outcomes[0].found == Failed(stage="ended", reason="another rank had failed")
    (finding,) = findings
    assert "rank 1 on two cannot listen on 192.0.2.1" in finding.cause
    assert "nodes.two.addresses" in finding.mend
