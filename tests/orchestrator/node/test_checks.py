"""Pure: verdicts of the doctor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.node.checks import GIB, Check, Facts, checks, unreachable
from orchestrator.node.reports import DoctorReport, NodeFacts, PortHolder
from orchestrator.node.site import Site
from orchestrator.transport.base import AccessRefusedError, HostKeyChangedError, NodeUnreachableError, TransportError
from schemas.node import Node

SITE = Site("/usr/bin/python3", (3, 11, 2), "/s", "/c", "linux", "x86_64", "/home/ann", "ann", 1000)
MACHINE = NodeFacts("linux", "x86_64", "3.11.2", 64 * GIB, 60 * GIB, 500 * GIB, "boot", 0.0, 8)
WELL = Facts(SITE, DoctorReport(MACHINE, "/usr/bin/python3", True), True, 0.1, 0.2)
NODE = Node(reach="ssh")


def verdicts(facts: Facts, node: Node = NODE) -> dict[str, Check]:
    return {check.name: check for check in checks("one", node, facts)}


def with_machine(**facts: Any) -> Facts:
    return replace(WELL, report=replace(WELL.report, node=replace(MACHINE, **facts)))


def test_fit_node_has_nothing_to_mend() -> None:
    seen = verdicts(WELL)

    assert {check.verdict for check in seen.values()} == {"ok"}
    assert [check.mend for check in seen.values() if check.mend] == []
    assert "rdma" not in seen


@pytest.mark.parametrize(
    ("facts", "name", "verdict", "words"),
    [
        (replace(WELL, is_provisioned=False), "environment", "warn", "orchestrate node install one"),
        (replace(WELL, report=replace(WELL.report, locks_work=False)), "state", "fail", "local disk"),
        (with_machine(disk_free_bytes=5 * GIB), "disk", "warn", "hardly for a model"),
        (with_machine(disk_free_bytes=GIB // 2), "disk", "fail", "0.5 GiB free"),
        (with_machine(memory_total_bytes=0), "memory", "warn", "memory_gib"),
        (replace(WELL, skew_s=30.0), "clock", "warn", "30 s ahead of ours"),
        (replace(WELL, skew_s=-3600.0), "clock", "fail", "60 min behind ours"),
        (replace(WELL, skew_s=30.0, skew_error_s=40.0), "clock", "ok", "within 40 s"),
        (replace(WELL, has_systemd=True), "supervision", "warn", "loginctl enable-linger ann"),
        (replace(WELL, site=replace(SITE, systemd_run="/x")), "supervision", "ok", "lingers"),
        (replace(WELL, site=replace(SITE, os="macos")), "supervision", "warn", "errno 65"),
        (replace(WELL, site=replace(SITE, os="macos", anchor="/x")), "supervision", "ok", "LaunchDaemon"),
        (replace(WELL, ports={18100: PortHolder(1, 1, "vi", None, None)}), "ports", "warn", "pid 1 (vi)"),
        (replace(WELL, ports={18100: PortHolder(1, 1, "x", "lab", "chat-0.0@ab")}), "ports", "ok", "99 of 100 free"),
        (replace(WELL, ports={18100: PortHolder(None, None, "", None, None)}), "ports", "warn", "another user"),
        (replace(WELL, rdma=frozenset({"mlx5_0"})), "rdma", "ok", "mlx5_0"),
    ],
)
def test_what_is_wrong_is_said_with_its_mend(facts: Facts, name: str, verdict: str, words: str) -> None:
    check = verdicts(facts)[name]

    assert check.verdict == verdict
    assert words in f"{check.found} {check.mend}"
    assert check.verdict == "ok" or check.mend


@pytest.mark.parametrize(
    ("devices", "verdict"), [(None, "fail"), (frozenset({"rdma_en3"}), "fail"), (frozenset({"rdma_en2"}), "ok")]
)
def test_devices_that_the_file_names_must_be_there(devices: frozenset[str] | None, verdict: str) -> None:
    node = Node(reach="ssh", rdma={"two": "rdma_en2"})

    assert verdicts(replace(WELL, rdma=devices), node)["rdma"].verdict == verdict


def test_file_that_promises_more_memory_than_there_is_fails() -> None:
    assert verdicts(WELL, Node(reach="ssh", memory_gib=512.0))["memory"].verdict == "fail"
    assert verdicts(WELL, Node(reach="ssh", memory_gib=64.0))["memory"].verdict == "ok"
    assert (
        verdicts(with_machine(memory_available_bytes=GIB), Node(reach="ssh", reserve_gib=8.0))["memory"].verdict
        == "warn"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (NodeUnreachableError, "reach"),
        (HostKeyChangedError, "host key"),
        (AccessRefusedError, "login"),
        (TransportError, "node"),
    ],
)
def test_node_that_cannot_be_asked_fails_where_it_went_wrong(kind: type[TransportError], name: str) -> None:
    assert unreachable(kind("one", "because")) == Check(name, "fail", "because")
