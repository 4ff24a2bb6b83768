"""What a controller remembers of a stack between its commands."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.exits import CommandError, ExitCode
from orchestrator.cli.main import main
from orchestrator.cli.options import run
from orchestrator.cluster import reach
from orchestrator.controller import Controller
from orchestrator.directories import Directories
from orchestrator.journal import Generation
from orchestrator.observed import Unreachable
from orchestrator.planned import Planned, still_looked_at
from orchestrator.policy import PlanPolicy
from orchestrator.reconcile import GATEWAY_SLOT, reconcile
from orchestrator.revisions import GitStamp
from orchestrator.rollback import RollbackError
from orchestrator.simulate import report as simulated
from schemas.base import NodeName
from schemas.node import Node
from schemas.unit import GatewaySpec
from tests.fakes.upstream import FakeUpstream, refuses
from tests.orchestrator.test_plan_text import CODER, desired, empty, running

ALPHA, BETA = NodeName("alpha"), NodeName("beta")


def planned(tmp_path, *targets: str) -> Planned:
    """Return a plan for a stack whose node beta has left the files while a unit lives there."""
    wanted = replace(desired(), left=frozenset({BETA}))
    world = running(desired(coder=CODER, titan={**CODER, "nodes": ["beta"]}))
    plan = reconcile(wanted, world, PlanPolicy(targets=targets))
    cluster = reach(wanted.stack, wanted.nodes, Directories(tmp_path / "state", tmp_path / "cache"))
    return Planned(plan, wanted, world, cluster, GitStamp(None, False, None), 1)


def test_a_node_that_left_is_forgotten_once_nothing_lives_there(tmp_path):
    assert set(still_looked_at(planned(tmp_path))) == {ALPHA}


def test_a_node_that_left_is_looked_at_while_a_unit_outlives_the_plan(tmp_path):
    assert set(still_looked_at(planned(tmp_path, "coder"))) == {ALPHA, BETA}


def test_a_node_that_left_and_is_said_to_be_lost_is_forgotten(tmp_path):
    before = planned(tmp_path)
    gone = replace(before, observed=empty(beta=Unreachable("no route")))
    assert set(still_looked_at(gone)) == {ALPHA, BETA}
    assert set(still_looked_at(gone, frozenset({BETA}))) == {ALPHA}


def test_the_way_leads_also_to_a_node_that_left_the_files(tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    control = Controller(conf, "s", (), Directories(tmp_path / "state", tmp_path / "cache"))
    control.journal.remember_nodes({ALPHA: Node(reach="local"), BETA: Node(reach="ssh", host="beta.lan")})
    (conf / "stacks").mkdir()
    (conf / "nodes.yaml").write_text("alpha: {reach: local}\n")
    assert {ALPHA, BETA} <= set(control.cluster().nodes)


def test_a_rollback_whose_files_are_gone_is_told_without_a_traceback():
    async def restarting() -> None:
        raise RollbackError("The files of generation 3 are gone.")

    with pytest.raises(CommandError, match="files of generation 3") as told:
        run(restarting())
    assert told.value.code == ExitCode.ERROR


def test_down_is_recorded_once_also_where_nothing_lives(tmp_path, monkeypatch, capsys):
    """A watcher that waits before it starts a unit again learns by it that the stack was taken down."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    conf = Path(__file__).parents[2] / "conf"
    control = Controller(conf, "quickstart", (), Directories.from_environment(os.environ))
    control.journal.record(Generation(1, None, False, (), str(conf), "me@here", 1.0, (), "applied"))
    for _ in range(2):
        assert main(["--conf", str(conf), "down", "quickstart", "--yes"]) == ExitCode.FINE
        assert "Nothing of stack quickstart is running." in capsys.readouterr().out
    assert [generation.command for generation in control.journal.latest()] == ["down", "apply"]


async def test_an_apply_with_nothing_to_do_ends_when_the_gateway_has_read_its_files(tmp_path):
    """The keys in them may have changed, which no plan shows."""
    wanted, before = desired(), planned(tmp_path)
    directories = Directories(tmp_path / "state", tmp_path / "cache")
    here = {ALPHA: Node(reach="local"), BETA: Node(reach="local")}
    async with FakeUpstream(refuses(503)) as gateway:
        spec = GatewaySpec(node=ALPHA, bind="127.0.0.1", port=gateway.port)
        unit = replace(wanted.units[GATEWAY_SLOT], spec=spec)
        wanted = replace(wanted, units={**wanted.units, GATEWAY_SLOT: unit})
        control = Controller(tmp_path, "s", (), directories)
        cluster, seen = reach(wanted.stack, here, directories), replace(before.observed, gateway=simulated(wanted))
        at = replace(before, desired=wanted, observed=seen, cluster=cluster)
        await control.allot(at)
        assert [seen.path for seen in gateway.seen] == ["/admin/config/reload"]
        await control.allot(replace(at, observed=replace(at.observed, gateway=None)))
        assert len(gateway.seen) == 1, "where none answered the look, nothing is asked"
