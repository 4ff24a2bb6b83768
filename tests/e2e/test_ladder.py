"""A role walks down its ladder when the sharded group is lost, and up again when a watcher has brought it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.e2e.conftest import trial_in
from tests.e2e.trial import REPOSITORY, Trial, is_alive, poll
from tests.e2e.watching import Watching
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def ladder(tmp_path, tiny_model_dir) -> Iterator[Trial]:
    """Return a running stack: a group of two ranks, a worker alone behind it, a helper behind both."""
    trial = trial_in(tmp_path / "trial", None)
    port = free_port()
    helper = subprocess.Popen([sys.executable, "-m", "tests.fakes.upstream", "--port", str(port)], cwd=REPOSITORY)
    stack = yaml.safe_load(trial.file.read_text())
    stack["models"] = {"tiny": {"source": f"path:{tiny_model_dir}", "memory_gib": 0.1}}
    group = {
        "nodes": ["local", "local"],
        "sharding": {"backend": "ring", "strategy": "tensor", "canary": {"long_tokens": 64}},
    }
    stack["services"] = {"group": {"model": "tiny", **group}, "solo": {"model": "tiny", "nodes": ["local"]}}
    stack["helpers"] = {"box": {"url": f"http://127.0.0.1:{port}", "models": {"any": {}}}}
    stack["roles"]["chat"]["endpoints"] = {
        "group": {"service": "group", "priority": 1},
        "solo": {"service": "solo", "priority": 2},
        "box": {"helper": "box", "model": "any", "priority": 3},
    }
    trial.file.write_text("# @package _global_\n" + yaml.safe_dump(stack, sort_keys=False))
    try:
        trial.run("apply", "quickstart", "--yes")
        yield trial
    finally:
        trial.close()
        helper.kill()
        helper.wait()


def rung(trial: Trial) -> str:
    """Return who answers; the answer must be a good one, whoever gives it."""
    answer = trial.chat(max_tokens=2)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-orchestrate-endpoint"]


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    poll(lambda: not is_alive(pid))


def test_a_role_walks_down_its_ladder_and_up_again_without_an_apply(ladder):
    pids = ladder.pids()
    assert rung(ladder) == "group"
    end(pids["group-0.1"])
    assert rung(ladder) == "solo"  # no request is lost on the way down
    end(pids["solo-0.0"])
    assert rung(ladder) == "box"
    with Watching(ladder) as watching:
        watching.wait_for(lambda: rung(ladder) == "group")
        watching.wait_for(lambda: {"group-0.0", "group-0.1", "solo-0.0"} <= set(ladder.units()))
    assert rung(ladder) == "group"


def test_a_streaming_client_of_a_lost_group_is_told_and_the_next_one_is_served_below(ladder):
    # The tiny model never ends by itself when the most probable token is taken.
    wish = {"stream": True, "max_tokens": 20_000, "temperature": 0}
    body = {"model": "chat", **wish, "messages": [{"role": "user", "content": "Go on"}]}
    rank = ladder.pids()["group-0.1"]  # looked up before: meanwhile the stream would go on
    with httpx.stream("POST", f"{ladder.url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert any('"content":' in line.replace(" ", "") and line.startswith("data:") for line in lines)
        end(rank)
        rest = "\n".join(lines)
    assert '"error"' in rest
    assert "[DONE]" not in rest
    assert rung(ladder) == "solo"
