"""What `status` says about files: of the stack that runs, not of another one that has its name."""

from __future__ import annotations

from orchestrator.cli.observe import _status_lines
from orchestrator.controller import Controller, Seen
from orchestrator.directories import Directories
from orchestrator.observed import Observed, ObservedUnit, Reachable
from schemas.base import NodeName, UnitId
from schemas.problems import Problem


def status_of_a_stack_that_runs_from(owner, tmp_path):
    unit_id, node = UnitId("chat-0.0@0"), NodeName("local")
    unit = ObservedUnit(unit_id, node, alive=True, ready=True, owner=str(owner))
    seen = Seen(Observed({node: Reachable({unit_id: unit})}), None, (Problem(file="f", message="no such stack"),))
    control = Controller(tmp_path / "conf", "s", (), Directories(tmp_path, tmp_path / "cache"))
    return "\n".join(_status_lines(control, seen))


def test_files_of_another_directory_are_not_blamed(tmp_path):
    text = status_of_a_stack_that_runs_from(tmp_path / "other", tmp_path)
    assert f"It runs from {tmp_path / 'other'}; look with:" in text
    assert "cannot be used" not in text


def test_bad_files_of_the_stack_that_runs_are_named(tmp_path):
    text = status_of_a_stack_that_runs_from(tmp_path / "conf", tmp_path)
    assert "The files cannot be used" in text
    assert "f: no such stack" in text
