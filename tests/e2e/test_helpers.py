"""A stack that only calls somebody else's Ollama: apply pulls its model, the gateway asks it, status tells of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.trial import REPOSITORY, Trial, poll
from tests.ports import free_port

pytestmark = pytest.mark.e2e

STACK = """\
# @package _global_
defaults:
  - /nodes: [local]
  - _self_
stack: quickstart
helpers:
  rtx:
    url: http://127.0.0.1:{ollama}
    api: ollama
    models:
      qwen3:8b: {{ensure: present}}
roles:
  chat:
    endpoints:
      rtx: {{helper: rtx, model: "qwen3:8b"}}
gateway: {{node: local, bind: 127.0.0.1, port: {port}}}
"""


@pytest.fixture
def ollama() -> Iterator[int]:
    """Run a fake Ollama as a process of its own; returns its port."""
    port = free_port()
    program = [sys.executable, "-m", "tests.fakes.engines", "ollama", "--port", str(port)]
    process = subprocess.Popen(program, cwd=REPOSITORY)
    try:
        poll(lambda: _answers(port))
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/version", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_missing_model_is_pulled_and_then_answers(trial: Trial, ollama: int):
    trial.file.write_text(STACK.format(ollama=ollama, port=trial.port))
    planned = trial.run("plan", "quickstart").stdout
    assert "qwen3:8b is missing" in planned
    assert "1 to pull" in planned
    applied = trial.run("apply", "quickstart", "--yes").stdout
    assert "pull rtx/qwen3:8b: done" in applied
    assert "No changes" in trial.run("plan", "quickstart").stdout
    assert "helper rtx: ollama 0.12.3, 1 model" in trial.run("status", "quickstart").stdout
    answer = trial.chat()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]
    (line,) = [line for line in trial.json("status", "quickstart") if line["type"] == "helper"]
    assert (line["reachable"], line["engine"], line["present"]) == (True, "ollama", ["qwen3:8b"])


def test_a_silent_helper_is_deferred_and_nothing_else_waits_for_it(trial: Trial):
    trial.file.write_text(STACK.format(ollama=free_port(), port=trial.port))
    planned = trial.run("plan", "quickstart", code=4).stdout
    assert "rtx" in planned
    assert "refuses port" in planned
    trial.run("apply", "quickstart", "--yes", code=4)
    assert "gateway-0.0" in trial.units()
