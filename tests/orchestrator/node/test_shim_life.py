"""I/O: a unit lives while its lock is held, is never doubled, and ends whole."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.node.harness import DEADLINE_S, SHIM, Shim, eventually, is_running

FOREVER = ("sleep", "1000")


def test_start_answers_with_the_program_running(shim: Shim) -> None:
    answer = shim.start("chat-0.0@ab", *FOREVER, labels={"spec_hash": "ab"})

    assert Path(f"/proc/{answer['pid']}/cmdline").read_bytes() == b"sleep\x001000\x00"
    unit = shim.unit("chat-0.0@ab")
    assert (unit["alive"], unit["shim_alive"], unit["phase"]) == (True, True, "running")
    assert (unit["pid"], unit["labels"], unit["exit_code"]) == (answer["pid"], {"spec_hash": "ab"}, None)
    assert "log_tail" not in unit
    assert os.getpgid(answer["pid"]) == answer["pid"]


def test_files_are_for_the_owner_only(shim: Shim) -> None:
    shim.start("a", *FOREVER)

    modes = {path.name: path.stat().st_mode & 0o777 for path in shim.directory("a").iterdir()}
    assert modes == {"lock": 0o600, "record.json": 0o600, "log": 0o600}
    assert shim.state.stat().st_mode & 0o777 == 0o700


def test_second_start_is_refused_while_the_first_lives(shim: Shim) -> None:
    first = shim.start("a", *FOREVER)

    second = shim.start("a", *FOREVER)

    assert second["error"]["code"] == "already_running"
    assert shim.unit("a")["pid"] == first["pid"]


def test_one_of_twenty_racing_starts_wins(shim: Shim) -> None:
    racing = [shim.popen("start", shim.start_request("a", *FOREVER)) for _ in range(20)]
    # Looking must never make a start fail.
    looking = [shim.popen("list", shim.request(stack=None, ports=[])) for _ in range(3)]

    answers = [json.loads(each.communicate(timeout=DEADLINE_S)[0]) for each in racing]
    assert all(json.loads(each.communicate(timeout=DEADLINE_S)[0])["ok"] for each in looking)

    winners = [answer for answer in answers if answer["ok"]]
    assert len(winners) == 1
    assert {answer["error"]["code"] for answer in answers if not answer["ok"]} == {"already_running"}
    assert shim.unit("a")["pid"] == winners[0]["pid"]


@pytest.mark.parametrize(
    ("argv", "cwd", "text", "exit_code"),
    [
        (["no-such-program"], "/", "cannot run no-such-program: No such file or directory", 127),
        (["/etc/passwd"], "/", "cannot run /etc/passwd: Permission denied", 126),
        (["true"], "/no/such/place", "cannot enter the directory /no/such/place: No such file or directory", 127),
    ],
)
def test_exec_that_fails_is_told_and_recorded(shim: Shim, argv: list[str], cwd: str, text: str, exit_code: int) -> None:
    answer = shim.start("a", *argv, cwd=cwd)

    assert (answer["error"]["code"], answer["error"]["message"]) == ("exec_failed", text)
    unit = shim.unit("a")
    assert (unit["alive"], unit["phase"], unit["exit_code"]) == (False, "exited", exit_code)
    assert text in unit["log_tail"]
    assert shim.start("a", *FOREVER)["ok"]


def test_exit_code_and_signal_are_recorded(shim: Shim) -> None:
    shim.start("coded", "sh", "-c", "echo last words; exit 3")
    killed = shim.start("killed", *FOREVER)
    os.kill(killed["pid"], signal.SIGKILL)

    coded = shim.dead("coded")
    assert (coded["phase"], coded["exit_code"], coded["exit_signal"]) == ("exited", 3, None)
    assert coded["log_tail"] == "last words\n"
    assert coded["exited_at"] >= coded["started_at"]
    dead = shim.dead("killed")
    assert (dead["phase"], dead["exit_code"], dead["exit_signal"]) == ("exited", None, signal.SIGKILL)


def test_stop_is_idempotent(shim: Shim) -> None:
    shim.start("a", *FOREVER)

    assert shim.stop("a") == {"version": 1, "ok": True, "was_running": True}
    assert shim.stop("a") == {"version": 1, "ok": True, "was_running": False}
    assert shim.stop("never-started") == {"version": 1, "ok": True, "was_running": False}
    assert shim.unit("a")["exit_signal"] == signal.SIGTERM


def test_stop_lets_the_unit_finish_within_the_grace(shim: Shim) -> None:
    shim.start("a", "sh", "-c", "trap 'echo drained; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    shim.logged("a", 1)

    shim.stop("a")

    unit = shim.unit("a")
    assert unit["exit_code"] == 0
    assert unit["log_tail"].endswith("drained\n")


STUBBORN = (
    "trap '' TERM; echo $$; (trap '' TERM; sh -c 'echo $$; while :; do sleep 1; done') & while :; do sleep 1; done"
)


def test_unit_that_ignores_term_is_killed_with_its_grandchildren(shim: Shim) -> None:
    shim.start("a", "sh", "-c", STUBBORN)
    pids = [int(line) for line in shim.logged("a", 2)]
    assert all(is_running(pid) for pid in pids)

    assert shim.stop("a", grace_s=0.2)["was_running"]

    assert not any(is_running(pid) for pid in pids)
    assert shim.unit("a")["exit_signal"] == signal.SIGKILL


def test_stopped_unit_gets_the_chance_to_end_itself(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER)["pid"]
    os.kill(pid, signal.SIGSTOP)

    shim.stop("a", grace_s=DEADLINE_S)

    assert shim.unit("a")["exit_signal"] == signal.SIGTERM


def test_unit_that_may_not_be_stopped_for_long_is_killed(shim: Shim) -> None:
    pid = shim.start("a", *FOREVER, stopped_s=0.1)["pid"]
    os.kill(pid, signal.SIGSTOP)

    assert shim.dead("a")["exit_signal"] == signal.SIGKILL
    assert "it was stopped for 0.1 s, and is killed" in shim.log("a")


def test_unit_that_went_on_in_time_lives(shim: Shim) -> None:
    """Nothing is due any more: its supervisor waits for its end as before."""
    pid = shim.start("a", *FOREVER, stopped_s=3600)["pid"]
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGTERM)

    assert shim.dead("a")["exit_signal"] == signal.SIGTERM


def test_leader_that_exits_takes_its_group_along(shim: Shim) -> None:
    shim.start("a", "sh", "-c", "sleep 1000 & echo $!; exit 0")

    assert shim.dead("a")["exit_code"] == 0
    assert not is_running(int(shim.log("a")))


def test_term_to_the_supervisor_ends_the_unit(shim: Shim) -> None:
    pid = shim.start("a", "sh", "-c", STUBBORN, grace_s=0.2)["pid"]
    shim.logged("a", 2)

    os.kill(shim.record("a")["shim_pid"], signal.SIGTERM)

    assert shim.dead("a")["exit_signal"] == signal.SIGKILL
    assert not is_running(pid)


def test_killed_supervisor_leaves_no_double_and_nothing_that_cannot_be_stopped(shim: Shim) -> None:
    pid = shim.start("a", "sh", "-c", "sleep 1000 & echo $!; wait")["pid"]
    grandchild = int(shim.logged("a", 1)[0])
    os.kill(shim.record("a")["shim_pid"], signal.SIGKILL)

    unit = eventually(lambda: (seen := shim.unit("a")) and not seen["shim_alive"] and seen)
    assert (unit["alive"], unit["phase"], unit["pid"]) == (True, "running", pid)
    assert shim.start("a", *FOREVER)["error"]["code"] == "already_running"

    assert shim.stop("a")["was_running"]
    assert not is_running(pid)
    assert not is_running(grandchild)
    assert (shim.unit("a")["phase"], shim.unit("a")["exit_code"]) == ("exited", None)


ORPHAN = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True); import time; time.sleep(1000)"


@pytest.mark.parametrize("mend", ["start", "stop"])
def test_orphans_of_a_killed_pair_are_ended_before_anything_new(shim: Shim, mend: str) -> None:
    """subprocess closes descriptors, so the grandchild does not hold the lock: only group and session name it."""
    pid = shim.start("a", sys.executable, "-c", ORPHAN)["pid"]
    orphan = int(shim.logged("a", 1)[0])
    os.kill(shim.record("a")["shim_pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert shim.dead("a")["phase"] == "lost"
    assert is_running(orphan)
    assert shim.ask("gc", stack=shim.stack, keep=[])["removed"] == []

    assert shim.start("a", *FOREVER)["ok"] if mend == "start" else shim.stop("a")["was_running"]

    assert not is_running(orphan)


def test_daemon_that_keeps_the_lock_keeps_the_unit_alive_until_it_is_stopped(shim: Shim) -> None:
    # The leader ends only after its daemon has left the session: what is still in the group then is ended with it.
    code = "import os; r, w = os.pipe(); os.fork() and (os.read(r, 1), os._exit(0)); os.setsid();"
    code += "print(os.getpid(), flush=True); os.write(w, b'.'); os.execlp('sleep', 'sleep', '1000')"
    shim.start("a", sys.executable, "-c", code)
    daemon = int(shim.logged("a", 1)[0])
    shim.strays.append(daemon)

    unit = eventually(lambda: (seen := shim.unit("a")) and not seen["shim_alive"] and seen)
    assert (unit["alive"], unit["phase"]) == (True, "exited")
    assert shim.start("a", *FOREVER)["error"]["code"] == "already_running"

    assert shim.stop("a")["was_running"]
    eventually(lambda: not is_running(daemon))  # nothing but its lock was waited for, which goes a moment before it


@pytest.mark.parametrize("forged", ["started", "session", "boot"])
def test_recycled_pid_is_never_signalled(shim: Shim, forged: str) -> None:
    shim.start("a", "true")
    shim.dead("a")
    with subprocess.Popen(FOREVER, start_new_session=True) as stranger:
        started = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19]
        truth = {"pid": stranger.pid, "sid": stranger.pid, "started": started, "phase": "running"}
        lie = {"started": {"started": "1"}, "session": {"sid": 1}, "boot": {"boot_id": "an earlier one"}}[forged]
        record = {**shim.record("a"), **truth, "shim_pid": stranger.pid, "shim_started": "1", **lie}
        (shim.directory("a") / "record.json").write_text(json.dumps(record))

        assert shim.stop("a", grace_s=0) == {"version": 1, "ok": True, "was_running": False}
        assert shim.start("a", "true")["ok"]

        assert stranger.poll() is None
        stranger.kill()


def test_unit_survives_the_hangup_of_the_terminal_that_started_it(shim: Shim) -> None:
    request = json.dumps(shim.start_request("a", *FOREVER))
    script = 'printf "%s\\n" "$1" | "$2" -S "$3" start; sleep 1000'
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests themselves outlive their terminal
        os.execvp("sh", ["sh", "-c", script, "sh", request, sys.executable, str(SHIM)])  # noqa: S606 - no shell needed
    eventually(lambda: shim.state.is_dir() and shim.units().get("a", {}).get("phase") == "running")

    os.close(terminal)
    os.waitpid(pid, 0)  # the session ends by SIGHUP

    unit = shim.unit("a")
    assert (unit["alive"], unit["shim_alive"]) == (True, True)


def test_unit_survives_the_killing_of_the_whole_session_that_started_it(shim: Shim) -> None:
    request = json.dumps(shim.start_request("a", *FOREVER))
    script = 'printf "%s\\n" "$1" | "$2" -S "$3" start; sleep 1000'
    argv = ["sh", "-c", script, "sh", request, sys.executable, str(SHIM)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as session:
        assert session.stdout is not None
        pid = json.loads(session.stdout.readline())["pid"]
        os.killpg(session.pid, signal.SIGKILL)

    unit = shim.unit("a")
    assert (unit["alive"], unit["shim_alive"], unit["pid"]) == (True, True, pid)
    assert os.getsid(pid) not in {session.pid, os.getsid(0)}


def test_unit_inherits_nothing_from_its_starter(shim: Shim) -> None:
    """A pipe left open in the unit would keep an ssh session from ending."""
    inside, outside = os.pipe()
    process = shim.popen("start", shim.start_request("a", *FOREVER), pass_fds=[outside])
    os.close(outside)
    answer = json.loads(process.communicate(timeout=DEADLINE_S)[0])

    assert os.read(inside, 1) == b""  # the end, while the unit lives
    os.close(inside)
    held = {each.readlink().name for each in Path(f"/proc/{answer['pid']}/fd").iterdir()}
    assert {name.partition(":")[0] for name in held} == {"null", "pipe", "lock"}


def test_unit_starts_with_default_signals(shim: Shim) -> None:
    """Under nohup, or from a shell's background job, HUP and INT are ignored; a unit must not inherit that."""
    shim.start("a", "grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")

    lines = [line.split() for line in shim.dead("a")["log_tail"].splitlines()]
    assert [name for name, _ in lines] == ["SigBlk:", "SigIgn:"]
    # Signals 32 and 33 are the C library's own: it lets nobody change them, and now and then leaves one blocked.
    of_the_c_library = 1 << 31 | 1 << 32
    assert [int(mask, 16) & ~of_the_c_library for _, mask in lines] == [0, 0]
