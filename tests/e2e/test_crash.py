"""The controller is killed right after each kind of action, with real processes: the next apply ends what it began."""

from __future__ import annotations

import os
import signal
from itertools import count

import pytest

from tests.e2e.crashing import converges, kill_after
from tests.e2e.trial import heed_interrupts, is_alive

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SURGE = ("Start", "AwaitReady", "Publish", "Drain", "Stop")
SWAP = ("Drain", "Stop")
"""What comes after these is as in a surge."""
numbers = count(40)


@pytest.mark.parametrize("kind", SURGE)
def test_killed_while_a_unit_is_replaced_by_surge(running, kind):
    changes = (f"services.chat.max_waiting={next(numbers)}", "services.chat.update=surge")
    kill_after(running, kind, "ActionDone", *changes)
    if kind in ("Start", "AwaitReady", "Publish", "Drain"):
        assert running.chat().status_code == 200  # the old one serves, or the new one does
    converges(running, *changes)
    assert len(running.units()) == 2


@pytest.mark.parametrize("kind", SWAP)
def test_killed_while_a_unit_is_replaced_by_swap(running, kind):
    changes = (f"services.chat.max_waiting={next(numbers)}", "services.chat.update=swap")
    kill_after(running, kind, "ActionDone", *changes)
    converges(running, *changes)
    assert len(running.units()) == 2


def test_killed_during_the_first_apply(trial):
    kill_after(trial, "Rewire", "ActionDone")
    converges(trial)


def test_killed_while_the_stack_goes_down(trial):
    trial.run("apply", trial.stack, "--yes")
    pids = trial.pids()
    process = trial.popen("down", trial.stack, "--yes", "--json")
    assert process.stdout is not None
    next(line for line in process.stdout if '"ActionDone"' in line and '"Stop"' in line)
    process.kill()
    process.communicate()
    trial.run("down", trial.stack, "--yes")
    assert [pid for pid in pids.values() if is_alive(pid)] == []


def test_killed_while_a_group_is_started(trio):
    lost = trio.pids()["chat-0.1"]
    os.kill(lost, signal.SIGKILL)
    trio.wait_ended("chat-0.1", lost)
    kill_after(trio, "Start", "ActionStarted")
    converges(trio)
    assert len(trio.units()) == 4


def test_two_interrupts_leave_at_once_and_apply_goes_on_where_it_was(trial):
    process = trial.popen("apply", trial.stack, "--yes", "--json", preexec_fn=heed_interrupts)
    assert process.stdout is not None
    next(line for line in process.stdout if '"ActionStarted"' in line and '"AwaitReady"' in line)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    converges(trial)


def test_a_unit_that_runs_and_says_nothing_is_replaced_by_apply(running):
    before = running.pids()
    os.kill(before["chat-0.0"], signal.SIGSTOP)
    plan = running.run("plan", running.stack)
    assert "Waiting for an answer of local/chat-0.0" in plan.stderr
    converges(running)
    after = running.pids()
    assert after["chat-0.0"] != before["chat-0.0"]
    assert not is_alive(before["chat-0.0"])
    assert after["gateway-0.0"] == before["gateway-0.0"]


def test_the_time_limit_covers_the_whole_command(running):
    os.kill(running.pids()["chat-0.0"], signal.SIGSTOP)  # asking it takes longer than the limit
    assert "Given up after 5 s" in running.run("apply", running.stack, "--yes", "--timeout", "5", code=4).stderr
    os.kill(running.pids()["chat-0.0"], signal.SIGCONT)
    converges(running)
