"""I/O: logs, lists, locks, garbage collection and refusals of the shim."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.orchestrator.node.harness import DEADLINE_S, SHIM, Shim, eventually
from tests.ports import free_ports

FOREVER = ("sleep", "1000")
HOSTILE_NAMES = ["", ".", "..", ".hidden", "-rf", "a/b", "../a", "/etc", "a\n", "a b", "a\0", "ä", "x" * 201, "$(id)"]


def test_environment_reaches_the_unit_and_no_file_or_command_line(shim: Shim, tmp_path: Path) -> None:
    canary = "canary-5d1f"
    seen = tmp_path / "seen"
    shim.start("a", "sh", "-c", f'printf %s "$TOKEN" > {seen}; exec sleep 1000', env={"TOKEN": canary})
    eventually(lambda: seen.exists() and seen.read_text() == canary)

    commands = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert canary not in commands
    assert not [path for path in shim.state.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert canary not in json.dumps(shim.ask("list", stack=None, ports=[]))


PRINT_ARGUMENTS = """
import os, sys
values = [os.fsencode(word) for word in sys.argv[2:]] + [os.environb[key] for key in (b'ONE', b'TWO')]
with open(sys.argv[1] + '.part', 'wb') as file:
    file.write(b'\\0'.join(values))
os.rename(sys.argv[1] + '.part', sys.argv[1])
"""
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(words=st.lists(WORDS, max_size=8), one=WORDS, two=WORDS)
def test_arguments_and_environment_arrive_unchanged(
    shim: Shim, tmp_path: Path, words: list[str], one: str, two: str
) -> None:
    seen = tmp_path / "seen"
    seen.unlink(missing_ok=True)
    argv = [sys.executable, "-S", "-X", "utf8", "-c", PRINT_ARGUMENTS, str(seen), *words]

    assert shim.start("a", *argv, env={"ONE": one, "TWO": two})["ok"]
    shim.dead("a")

    assert seen.read_bytes() == b"\0".join(word.encode() for word in [*words, one, two])


COUNT = "i=0; while [ $i -lt 400 ]; do echo line-$i; i=$((i+1)); done"


def test_log_is_capped_and_keeps_the_newest_whole_lines(shim: Shim) -> None:
    shim.start("a", "sh", "-c", COUNT, log_max_bytes=1000)
    shim.dead("a")

    older, newest = shim.directory("a") / "log.1", shim.directory("a") / "log"
    assert older.stat().st_size <= 1000
    assert newest.stat().st_size <= 1000
    lines = (older.read_text() + newest.read_text()).splitlines()
    assert len(lines) > 100
    assert lines == [f"line-{i}" for i in range(400 - len(lines), 400)]


def test_line_longer_than_the_cap_is_split_not_lost(shim: Shim) -> None:
    shim.start("a", "sh", "-c", "printf %01500d 7; echo", log_max_bytes=1000)
    shim.dead("a")

    text = (shim.directory("a") / "log.1").read_text() + (shim.directory("a") / "log").read_text()
    assert text == f"{7:01500d}\n"


def read_logs(shim: Shim, unit: str, lines: int) -> bytes:
    process = shim.popen("logs", shim.request(stack=shim.stack, unit=unit, lines=lines, follow=False))
    return process.communicate(timeout=DEADLINE_S)[0]


@pytest.mark.parametrize("lines", [0, 1, 20, 150])
def test_logs_prints_the_last_lines_across_the_rotation(shim: Shim, lines: int) -> None:
    shim.start("a", "sh", "-c", COUNT, log_max_bytes=1000)
    shim.dead("a")

    assert read_logs(shim, "a", lines).decode().splitlines() == [f"line-{i}" for i in range(400 - lines, 400)]


def read_this_run(shim: Shim, unit: str) -> bytes:
    request = shim.request(stack=shim.stack, unit=unit, lines=50, follow=False, this_run=True)
    return shim.popen("logs", request).communicate(timeout=DEADLINE_S)[0]


def test_last_lines_of_a_dead_unit_are_those_of_its_last_run(shim: Shim) -> None:
    for words in ("first", "second", "third"):
        assert shim.start("a", "sh", "-c", f"printf '%s\n' {words} begins {words} ends")["ok"]
        assert shim.dead("a")["log_tail"] == f"{words}\nbegins\n{words}\nends\n"

    assert read_this_run(shim, "a") == b"third\nbegins\nthird\nends\n"
    assert read_logs(shim, "a", 5) == b"ends\nthird\nbegins\nthird\nends\n"


def test_a_run_that_said_nothing_has_no_last_lines(shim: Shim) -> None:
    shim.start("a", "echo", "hello")
    shim.dead("a")
    shim.start("a", "true")

    assert shim.dead("a")["log_tail"] == ""
    assert read_logs(shim, "a", 5) == b"hello\n"


@pytest.mark.parametrize("lines", [3, 6, 12, 40])
def test_last_lines_of_a_run_are_all_there_however_often_its_log_was_moved(shim: Shim, lines: int) -> None:
    """Of files of 20 bytes a run of many lines fills several, and the inodes of those that are gone are reused."""
    shim.start("a", "sh", "-c", "echo earlier; echo earlier", log_max_bytes=20)
    shim.dead("a")
    count = f"i=0; while [ $i -lt {lines} ]; do echo line-$i; i=$((i+1)); done"
    shim.start("a", "sh", "-c", count, log_max_bytes=20)

    said = shim.dead("a")["log_tail"].splitlines()
    assert said
    assert said == [f"line-{i}" for i in range(lines - len(said), lines)]
    assert lines > 3 or len(said) == 3


@pytest.mark.parametrize("start", ["torn", [], [1], [1, -1], ["1", 2], [None, None]])
def test_a_record_that_does_not_say_where_its_run_began_hides_no_lines(shim: Shim, start: object) -> None:
    shim.start("a", "echo", "hello")
    shim.dead("a")
    (shim.directory("a") / "record.json").write_text(json.dumps({**shim.record("a"), "log_from": start}))

    assert shim.dead("a")["log_tail"] == "hello\n"


def test_logs_of_an_unknown_unit_are_refused(shim: Shim) -> None:
    assert json.loads(read_logs(shim, "nobody", 5))["error"]["code"] == "no_such_unit"


def test_follow_copies_everything_across_rotations_and_ends_with_the_unit(shim: Shim, tmp_path: Path) -> None:
    """The writer waits for each of its lines to be seen, so none can be rotated away before."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    shim.start("a", "sh", "-c", f"i=0; while read -r _; do echo line-$i; i=$((i+1)); done < {gate}", log_max_bytes=20)
    follower = shim.popen("logs", shim.request(stack=shim.stack, unit="a", lines=10, follow=True))
    assert follower.stdout is not None
    with gate.open("w") as writer:
        for i in range(12):
            writer.write("\n")
            writer.flush()
            assert follower.stdout.readline().decode() == f"line-{i}\n"

    assert follower.stdout.read() == b""  # by itself: stdin is still open
    assert follower.wait(DEADLINE_S) == 0


def test_follow_ends_when_the_reader_is_gone(shim: Shim) -> None:
    shim.start("a", "sh", "-c", "echo hello; exec sleep 1000")
    shim.logged("a", 1)
    request = shim.request(stack=shim.stack, unit="a", lines=10, follow=True)
    by_input, by_output = shim.popen("logs", request), shim.popen("logs", request)
    for follower in (by_input, by_output):
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"hello\n"

    assert by_input.stdin is not None
    by_input.stdin.close()
    assert by_output.stdout is not None
    by_output.stdout.close()

    assert by_input.wait(DEADLINE_S) == 0
    by_output.wait(DEADLINE_S)
    assert shim.unit("a")["alive"]


def hold(shim: Shim, name: str, **holder: Any) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    process = shim.popen("lock", shim.request(name=name, holder=holder))
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.mark.parametrize("release", ["eof", "kill"])
def test_lock_names_its_holder_and_vanishes_with_it(shim: Shim, release: str) -> None:
    first, answer = hold(shim, "apply", user="ann", generation=1)
    assert answer == {"version": 1, "ok": True, "locked": True}
    _, refused = hold(shim, "apply", user="bob")
    assert (refused["error"]["code"], refused["error"]["holder"]) == ("locked", {"user": "ann", "generation": 1})
    assert hold(shim, "other", user="bob")[1]["ok"]

    if release == "eof":
        assert first.stdin is not None
        first.stdin.close()
    else:
        first.kill()
    first.wait(DEADLINE_S)

    _, again = hold(shim, "apply", user="bob")
    assert again["ok"]
    assert hold(shim, "apply")[1]["error"]["holder"] == {"user": "bob"}


def test_gc_removes_the_dead_that_nobody_keeps_and_never_the_living(shim: Shim, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for unit in ("old", "kept"):
        shim.start(unit, "true")
        shim.dead(unit)
    shim.start("living", *FOREVER)
    (shim.directory("link")).symlink_to(outside)

    answer = shim.ask("gc", stack=shim.stack, keep=["kept"])

    assert answer["removed"] == ["old"]
    assert sorted(path.name for path in shim.directory("x").parent.iterdir()) == ["kept", "link", "living"]
    assert outside.is_dir()
    assert shim.unit("living")["alive"]
    assert shim.ask("gc", stack="never-heard-of", keep=[])["removed"] == []


@pytest.mark.parametrize("hostile", HOSTILE_NAMES)
def test_hostile_names_are_refused(shim: Shim, hostile: str) -> None:
    shim.state.mkdir(mode=0o700)

    assert shim.ask("start", stack="a", unit=hostile, argv=["true"])["error"]["code"] == "bad_name"

    assert list(shim.state.iterdir()) == []


def test_names_are_checked_by_every_verb(shim: Shim) -> None:
    shim.state.mkdir(mode=0o700)
    for verb, fields in [
        ("start", {"stack": "..", "unit": "a", "argv": ["true"]}),
        ("stop", {"stack": "a", "unit": ".."}),
        ("stop", {"stack": "..", "unit": "a"}),
        ("logs", {"stack": "a", "unit": ".."}),
        ("list", {"stack": ".."}),
        ("gc", {"stack": ".."}),
        ("lock", {"name": "../lock"}),
    ]:
        assert shim.ask(verb, **fields)["error"]["code"] == "bad_name", verb
    assert list(shim.state.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"state": "relative"}',
        b'{"state": "/tmp/\\u0000"}',
        b'{"state": 1}',
    ],
)
def test_request_that_cannot_be_read_is_refused(line: bytes) -> None:
    done = subprocess.run([sys.executable, str(SHIM), "list"], input=line, capture_output=True, check=False)

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "bad_request"
    assert done.stderr == b""


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": "true"},
        {"argv": ["true", 1]},
        {"argv": ["a\0b"]},
        {"argv": ["\ud800"]},
        {"env": {"A": 1}},
        {"env": {"A=B": "x"}},
        {"env": {"": "x"}},
        {"env": []},
        {"labels": {"a": 1}},
        {"grace_s": "1"},
        {"grace_s": -1},
        {"grace_s": float("nan")},
        {"grace_s": True},
        {"log_max_bytes": 0},
        {"cwd": None},
    ],
)
def test_start_with_wrong_fields_starts_nothing(shim: Shim, fields: dict[str, Any]) -> None:
    answer = shim.ask("start", **{"stack": "lab", "unit": "a", "argv": ["true"], **fields})

    assert answer["error"]["code"] == "bad_request"
    assert not shim.directory("a").exists()


def damage(shim: Shim) -> list[bytes]:
    whole = shim.record("a")
    return [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"[" * 100_000,
        json.dumps(whole).encode()[:-20],
        json.dumps({**whole, "version": 2}).encode(),
        json.dumps({**whole, "pid": "1"}).encode(),
        json.dumps({**whole, "labels": {"a": 1}}).encode(),
        json.dumps({key: value for key, value in whole.items() if key != "phase"}).encode(),
    ]


def test_unreadable_records_are_reported_and_their_units_can_be_stopped(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER)["pid"]
    shim.start("good", *FOREVER)
    for data in damage(shim):
        (shim.directory("a") / "record.json").write_bytes(data)
        unit = shim.unit("a")
        assert (unit["alive"], unit["phase"], unit["pid"]) == (True, "unreadable", None), data[:40]
    assert shim.unit("good")["phase"] == "running"

    assert shim.stop("a")["was_running"]

    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_foreign_files_are_no_reason_to_fail(shim: Shim) -> None:
    stack = shim.directory("x").parent
    for name in ("empty", "folders", ".hidden", "bad name"):
        (stack / name).mkdir(parents=True)
    for name in ("lock", "log", "record.json"):
        (stack / "folders" / name).mkdir()
    (stack / "file").write_text("x")
    (stack.parent / "file").write_text("x")

    units = shim.units()

    assert {name: (unit["alive"], unit["phase"]) for name, unit in units.items()} == {
        "empty": (False, "unreadable"),
        "folders": (False, "unreadable"),
    }


LISTEN = """
import socket, sys, time
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('up', flush=True)
time.sleep(1000)
"""


def test_list_names_who_holds_a_port(shim: Shim) -> None:
    # Of ports that the kernel picks another program may have the same number at another address.
    ours, theirs, free = free_ports(3)
    pid = shim.start("server", sys.executable, "-c", LISTEN, str(ours))["pid"]
    shim.logged("server", 1)
    with socket.create_server(("::1", theirs), family=socket.AF_INET6), socket.socket() as unused:
        unused.bind(("127.0.0.1", free))

        ports = shim.ask("list", stack="another", ports=[ours, theirs, free])["ports"]

    assert ports[str(free)] is None
    assert (ports[str(ours)]["pid"], ports[str(ours)]["stack"], ports[str(ours)]["unit"]) == (pid, "lab", "server")
    assert (ports[str(theirs)]["pid"], ports[str(theirs)]["unit"]) == (os.getpid(), None)
    assert "python" in ports[str(ours)]["command"]


def test_list_and_doctor_describe_the_node(shim: Shim) -> None:
    listed, checked = shim.ask("list", stack=None, ports=[])["node"], shim.ask("doctor")

    for facts in (listed, checked["node"]):
        assert facts["os"] in {"linux", "macos"}
        assert facts["memory_total_bytes"] >= facts["memory_available_bytes"] > 0
        assert facts["disk_free_bytes"] > 0
        assert facts["python"].startswith("3.")
    assert checked["locks_work"] is True


def test_unit_that_vanished_without_a_record_is_lost(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER)["pid"]
    os.kill(shim.record("a")["shim_pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)

    unit = shim.dead("a")
    assert (unit["phase"], unit["exit_code"], unit["exit_signal"]) == ("lost", None, None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small tmpfs needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_refuses_a_start_and_loses_no_running_unit(shim: Shim, small_disk: Path) -> None:
    shim.state = small_disk / "state"
    shim.start("running", "sh", "-c", "echo early; while :; do sleep 0.05; echo more; done")
    shim.logged("running", 1)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass

    assert shim.start("late", *FOREVER)["error"]["code"] == "disk_full"
    assert shim.unit("running")["alive"]
    filler.unlink()
    eventually(
        lambda: "bytes of output could not be written" in shim.log("running") or shim.log("running").endswith("more\n")
    )
    assert shim.stop("running")["was_running"]


def test_shim_needs_nothing_but_python_and_can_say_so_on_an_old_one() -> None:
    tree = ast.parse(SHIM.read_text(), feature_version=(3, 8))

    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
