"""I/O: end the controller with SIGKILL at a chosen moment, and look whether the next apply ends what it began."""

from __future__ import annotations

import json

from tests.e2e.trial import Trial, is_alive


def kill_after(trial: Trial, kind: str, event: str, *arguments: str, phase: str | None = None) -> None:
    """Run apply and kill it with SIGKILL as soon as it says that an action of a kind has begun, moved on or is done.

    `phase` is what an `ActionProgress` must be about.
    """
    process = trial.popen("apply", trial.stack, *arguments, "--yes", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said["type"] != "event" or said["action"]["kind"] != kind:
            continue
        assert said["event"] != "ActionFailed", said
        if said["event"] == event and phase in (None, said.get("phase")):
            break
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -9, f"{kind} never came: {err}"


def converges(trial: Trial, *arguments: str) -> None:
    """Apply again and look: what the stack says runs, once, and nothing else of ours does."""
    trial.run("apply", trial.stack, *arguments, "--yes")
    assert "No changes" in trial.run("plan", trial.stack, *arguments).stdout
    assert sorted(filter(is_alive, trial.recorded_pids())) == sorted(trial.pids().values())
    assert trial.chat().status_code == 200
