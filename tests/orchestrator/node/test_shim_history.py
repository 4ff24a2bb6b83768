"""I/O: a unit's ends are remembered across its starts, and a node remembers what was done on it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.directories import Directories
from orchestrator.node.client import ShimClient
from orchestrator.node.reports import UnitLaunch, crashes_s
from orchestrator.node.site import local_site
from orchestrator.transport.local import LocalTransport
from tests.orchestrator.node.harness import DEADLINE_S, Shim, eventually

FOREVER = ("sleep", "1000")
FAILS = (sys.executable, "-S", "-c", "raise SystemExit(7)")


def ends(shim: Shim, unit: str = "a") -> list[tuple[str, int | None, int | None]]:
    return [(end["how"], end["exit_code"], end["exit_signal"]) for end in shim.unit(unit)["ends"]]


def audit(shim: Shim, **request: Any) -> list[tuple[str, str | None, str]]:
    answer = shim.ask("audit", **{"stack": None, "lines": 100, **request})
    assert answer["ok"], answer
    return [(line["verb"], line["unit"], line["outcome"]) for line in answer["lines"]]


def test_ends_tell_a_crash_from_a_stop_across_starts(shim: Shim) -> None:
    assert shim.start("a", *FOREVER)["ok"]
    assert shim.unit("a")["ends"] == []
    began = time.time()
    os.kill(shim.unit("a")["pid"], signal.SIGKILL)
    shim.dead("a")
    assert ends(shim) == [("died", None, signal.SIGKILL)]
    shim.start("a", *FOREVER)
    assert ends(shim) == [("died", None, signal.SIGKILL)]
    shim.stop("a")
    assert ends(shim) == [("died", None, signal.SIGKILL), ("asked", None, signal.SIGTERM)]
    shim.start("a", *FAILS)
    shim.dead("a")
    assert [how for how, _, _ in ends(shim)] == ["died", "asked", "died"]
    assert ends(shim)[-1] == ("died", 7, None)
    assert all(began - 1 <= end["exited_at"] <= time.time() for end in shim.unit("a")["ends"])


def test_a_program_that_cannot_be_run_is_a_crash(shim: Shim) -> None:
    shim.start("a", "/no/such/program")
    assert ends(shim) == [("died", 127, None)]


def test_an_end_counts_once_when_a_start_fails_before_its_record_is_written(shim: Shim) -> None:
    shim.start("a", *FAILS)
    shim.dead("a")
    record = (shim.directory("a") / "record.json").read_bytes()
    shim.start("a", *FOREVER)
    shim.stop("a")
    (shim.directory("a") / "record.json").write_bytes(record)  # as if that start had not come to write its own
    shim.start("a", *FOREVER)
    assert ends(shim) == [("died", 7, None)]


def test_only_the_last_ten_ends_are_kept(shim: Shim) -> None:
    for _ in range(12):
        shim.start("a", "/no/such/program")
    assert len(shim.unit("a")["ends"]) == 10
    assert len((shim.directory("a") / "ends.jsonl").read_text().splitlines()) <= 10


def test_an_end_that_nobody_saw_is_a_crash_at_the_last_sign_of_life(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER)["pid"]
    os.kill(shim.record("a")["shim_pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    lost = shim.dead("a")
    assert lost["phase"] == "lost"
    assert [(end["how"], end["exited_at"] > 0) for end in lost["ends"]] == [("died", True)]


def test_the_end_of_the_node_is_no_crash(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER)["pid"]
    os.kill(shim.record("a")["shim_pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    shim.dead("a")
    record = shim.record("a")
    (shim.directory("a") / "record.json").write_text(json.dumps({**record, "boot_id": "another"}))
    assert ends(shim) == [("rebooted", None, None)]
    shim.start("a", *FOREVER)
    assert ends(shim) == [("rebooted", None, None)]


def test_forgiven_crashes_count_no_more(shim: Shim) -> None:
    for _ in range(2):
        shim.start("a", *FAILS)
        shim.dead("a")
    shim.start("b", *FAILS)
    shim.dead("b")
    assert shim.ask("forgive", stack=shim.stack, units=["a", "unknown"])["forgiven"] == ["a"]
    assert [how for how, _, _ in ends(shim)] == ["forgiven", "forgiven"]
    assert [how for how, _, _ in ends(shim, "b")] == ["died"]
    shim.start("a", *FAILS)
    shim.dead("a")
    assert [how for how, _, _ in ends(shim)] == ["forgiven", "forgiven", "died"]
    assert shim.ask("forgive", stack=shim.stack, units=["a"])["forgiven"] == ["a"]
    assert shim.ask("forgive", stack=shim.stack, units=["a"])["forgiven"] == []


def test_damaged_ends_are_passed_over(shim: Shim) -> None:
    shim.start("a", *FAILS)
    shim.dead("a")
    good = {"started_at": 1.0, "exited_at": 2.0, "exit_code": 1, "exit_signal": None, "how": "died"}
    lines = [b"{torn", b"\xff\xfe", b"[]", b"{}", json.dumps(good).encode()]
    (shim.directory("a") / "ends.jsonl").write_bytes(b"\n".join(lines))
    assert [code for _, code, _ in ends(shim)] == [1, 7]


def test_every_change_leaves_a_line_with_who_and_which_generation(shim: Shim) -> None:
    by = {"actor": "me@here", "generation": 4}
    shim.start("a", *FOREVER, by=by)
    shim.start("a", *FOREVER, by=by)
    shim.start("b", "/no/such/program")
    os.kill(shim.unit("a")["pid"], signal.SIGKILL)
    shim.dead("a")
    shim.start("a", *FOREVER)
    shim.stop("a")
    shim.ask("gc", stack=shim.stack, keep=["a"], by=by)
    shim.ask("forgive", stack=shim.stack, units=["a"])
    assert audit(shim) == [
        ("start", "a", "ok"),
        ("start", "a", "already_running"),
        ("start", "b", "exec_failed"),
        ("end", "a", "died"),
        ("start", "a", "ok"),
        ("stop", "a", "ok"),
        ("gc", None, "ok"),
        ("forgive", None, "ok"),
    ]
    lines = shim.ask("audit", stack=shim.stack, lines=100)["lines"]
    assert [(line["actor"], line["generation"]) for line in lines[:3]] == [("me@here", 4), ("me@here", 4), (None, None)]
    assert lines[3]["answer"] == {"exit_code": None, "exit_signal": signal.SIGKILL}
    assert lines[6]["answer"] == {"removed": ["b"]}
    assert all(abs(line["time"] - time.time()) < 3600 for line in lines)
    assert "env" not in json.dumps(lines)  # what a start carries may be secret
    assert audit(shim, lines=1) == [("forgive", None, "ok")]
    assert audit(shim, stack="another") == []


def test_the_audit_is_rotated_and_survives_torn_lines(shim: Shim) -> None:
    shim.start("a", *FOREVER)
    path = shim.state / "audit.jsonl"
    with path.open("a") as file:
        file.write("x" * (1 << 20))  # torn, and past the cap
    shim.stop("a")
    assert not path.exists()
    assert (shim.state / "audit.jsonl.1").stat().st_mode & 0o777 == 0o600
    shim.start("a", *FOREVER)
    assert audit(shim) == [("start", "a", "ok"), ("stop", "a", "ok"), ("start", "a", "ok")]


def test_what_only_looks_leaves_no_trace(shim: Shim) -> None:
    shim.units()
    shim.ask("doctor")
    shim.ask("audit", stack=None, lines=1)
    assert not (shim.state / "audit.jsonl").exists()


@pytest.fixture
def client(shim: Shim) -> ShimClient:
    site = local_site(Directories(shim.state, shim.state / "cache"))
    return ShimClient(LocalTransport("here"), site)


async def test_the_client_reports_crashes_by_the_clock_of_the_node_and_signs_what_it_does(
    client: ShimClient, shim: Shim
) -> None:
    signed = client.signed("me@here", 9)
    for _ in range(2):
        await signed.start(UnitLaunch("lab", "a", FAILS))
        shim.dead("a")
    report = await client.report("lab")
    ages = crashes_s(report.units[0].ends, report.node.time)
    assert len(ages) == 2
    assert 0 <= ages[0] <= ages[1] < 3600
    assert crashes_s(report.units[0].ends, report.node.time - 3600) == (0.0, 0.0)  # a clock that was set back
    assert await signed.forgive("lab", ["a"]) == ("a",)
    report = await client.report("lab")
    assert crashes_s(report.units[0].ends, report.node.time) == ()
    lines = await client.audit("lab", 10)
    assert {(line["actor"], line["generation"]) for line in lines if line["verb"] != "end"} == {("me@here", 9)}


async def test_watching_tells_at_once_what_lives(client: ShimClient, shim: Shim) -> None:
    async with client.watch("lab") as changes:
        assert await anext(changes) == {}
        another = Shim(shim.state, "another")
        another.start("other", *FOREVER)
        shim.start("a", *FOREVER)
        first = await anext(changes)
        assert set(first) == {"a"}
        assert first["a"] == shim.record("a")["launch"]
        os.kill(shim.unit("a")["pid"], signal.SIGKILL)
        assert await anext(changes) == {}
        shim.start("a", *FOREVER)
        assert (await anext(changes))["a"] != first["a"]
    another.clean_up()


def test_watching_tells_of_a_start_when_its_record_is_written(shim: Shim) -> None:
    """Between taking the lock and writing the record a start may take seconds; this test stands for it."""
    shim.start("a", *FOREVER)
    shim.stop("a")
    shim.directory("b").mkdir()
    written = {unit: shim.directory(unit) / "record.json" for unit in ("a", "b")}
    with (shim.directory("a") / "lock").open("wb") as one, (shim.directory("b") / "lock").open("wb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        watching = shim.popen("watch", shim.request(stack="lab"))
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["alive"] == {}
        record = {**json.loads(written["a"].read_text()), "phase": "starting"}
        replace(written["b"], {**record, "launch": "first"})
        assert json.loads(watching.stdout.readline())["alive"] == {"b": "first"}
        replace(written["a"], {**record, "launch": "second"})
        assert json.loads(watching.stdout.readline())["alive"] == {"a": "second", "b": "first"}


def replace(path: Path, record: dict[str, Any]) -> None:
    """Write a record as the shim does: a reader sees the old one or the new one."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def test_watching_ends_with_its_caller(shim: Shim) -> None:
    watching = shim.popen("watch", shim.request(stack="lab"))
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["alive"] == {}
    assert watching.stdin is not None
    watching.stdin.close()
    assert watching.wait(timeout=DEADLINE_S) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("needs root to mount a small disk")
    return place


def test_a_full_disk_loses_the_audit_and_never_the_verb(small_disk: Path, tmp_path: Path) -> None:
    shim = Shim(small_disk)
    try:
        shim.start("a", *FOREVER)
        (small_disk / "audit.jsonl").unlink()
        filler = small_disk / "filler"
        try:
            with filler.open("wb") as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass
        assert shim.stop("a")["was_running"]
        filler.unlink()
        eventually(lambda: not shim.unit("a")["alive"])
    finally:
        shim.clean_up()
        subprocess.run(["umount", "-l", small_disk], check=False)
