"""I/O: node files read without a stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.compose import read_nodes
from schemas.problems import ConfigurationError


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "a.yaml").write_text("a:\n  reach: ssh\n  host: a.lan\n  addresses: {lan: 10.0.0.1}\n")
    return tmp_path / "nodes"


def problems(conf: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_nodes(conf)
    return [str(problem) for problem in caught.value.problems]


def test_every_file_s_nodes_come_by_name(nodes: Path) -> None:
    (nodes / "more.yaml").write_text("b:\n  reach: local\nc:\n  reach: none\n")

    found = read_nodes(nodes.parent)

    assert {name: node.reach for name, node in found.items()} == {"a": "ssh", "b": "local", "c": "none"}
    assert found["a"].addresses == {"lan": "10.0.0.1"}  # type: ignore[index]


def test_every_problem_is_reported_with_its_line(nodes: Path) -> None:
    (nodes / "b.yaml").write_text("b:\n  reach: ssh\n  hots: b.lan\n")
    (nodes / "c.yaml").write_text("c:\n  reach: telnet\n  memory_gib: none\n")

    first, *others = problems(nodes.parent)

    assert "b.yaml:3" in first
    assert "did you mean 'host'" in first
    assert [("c.yaml:2" in each, "c.yaml:3" in each) for each in others] == [(True, False), (False, True)]


def test_node_that_stands_in_two_files_is_a_problem(nodes: Path) -> None:
    (nodes / "b.yaml").write_text("# a copy\na:\n  reach: local\n")

    (problem,) = problems(nodes.parent)

    assert "b.yaml:2" in problem
    assert "another file has this node too" in problem


def test_files_that_are_no_mappings_are_problems(nodes: Path) -> None:
    (nodes / "b.yaml").write_text("- b\n")
    (nodes / "c.yaml").write_text("")
    (nodes / "d.yaml").write_text("d: [\n")

    assert len(problems(nodes.parent)) == 3


def test_configuration_without_node_files_names_how_to_point_to_one(tmp_path: Path) -> None:
    assert "--conf DIR" in problems(tmp_path)[0]
