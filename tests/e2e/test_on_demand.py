"""A service that is loaded when it is asked for, through the whole product: apply, ask, wait, status, idle, down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import trial_in
from tests.e2e.trial import Trial, poll

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SERVICES = """
  chat:
    model: smollm2-135m-instruct
    nodes: [local]
    start: on-demand
    idle_stop_s: 40
  second:
    model: smollm2-135m-instruct
    nodes: [local]
    start: on-demand
"""
STACK = """\
# @package _global_
defaults:
  - /nodes: [local]
  - /models: [smollm2-135m-instruct]
  - _self_

stack: quickstart

services: {services}
roles:
  chat:
    endpoints:
      chat: {{service: chat}}
  other:
    endpoints:
      second: {{service: second}}

gateway:
  node: local
  bind: 127.0.0.1
  port: {port}
"""


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return a stack of two on-demand services with memory for one of them, applied."""
    trial = trial_in(tmp_path_factory.mktemp("lazy") / "trial", None, model=tiny_model_dir)
    try:
        trial.file.write_text(STACK.format(services=SERVICES, port=trial.port))
        node = trial.conf / "nodes" / "local.yaml"
        node.write_text(node.read_text() + "  memory_gib: 0.75\n")
        trial.run("apply", "quickstart", "--yes")
        yield trial
    finally:
        trial.close()


def states(trial: Trial, *slots: str) -> list[str]:
    """Return how units are at one moment; where one was too busy to answer, all are looked at again."""

    def seen() -> list[str] | None:
        units = trial.units()
        found = [str(units[slot]["state"]) for slot in slots]
        return None if {"silent", "loading"} & set(found) else found

    return poll(seen)


def ask(trial: Trial, role: str, **headers: str) -> httpx.Response:
    body: dict[str, Any] = {"model": role, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    return httpx.post(f"{trial.url}/v1/chat/completions", json=body, headers=headers, timeout=120, trust_env=False)


def test_it_is_applied_cold_and_routed_and_answers_whom_it_is_worth_waiting_for(lazy: Trial) -> None:
    # Another test may have asked before this one; who is idle is cold again after idle_stop_s.
    poll(lambda: states(lazy, "chat-0.0", "second-0.0") == ["cold", "cold"], deadline_s=180.0)
    out = lazy.run("status", "quickstart").stdout
    assert "on demand, not in memory for" in out
    assert "role chat: chat is cold" in out
    assert "No changes" in lazy.run("plan", "quickstart").stdout
    assert "and 2 on demand, the largest 0.5" in lazy.run("plan", "quickstart", "services.chat.port=18123").stdout

    refused = ask(lazy, "chat")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_loading"
    assert refused.json()["loading"]["phase"] in {"loading", "warming"}
    assert int(refused.headers["retry-after"]) >= 1
    assert ask(lazy, "chat", prefer="wait=100").status_code == 200
    assert "role chat: chat is ready" in lazy.run("status", "quickstart").stdout

    # The second one needs the memory of the first, which is idle.
    assert ask(lazy, "other", prefer="wait=100").status_code == 200
    assert states(lazy, "chat-0.0", "second-0.0") == ["cold", "ready"]
    assert "No changes" in lazy.run("plan", "quickstart").stdout

    assert ask(lazy, "chat", prefer="wait=100").status_code == 200
    poll(lambda: states(lazy, "chat-0.0") == ["cold"], deadline_s=180.0)  # idle_stop_s
    assert "role chat: chat is cold" in lazy.run("status", "quickstart").stdout


def test_up_asks_its_question_of_a_model_that_is_not_in_memory(lazy: Trial) -> None:
    poll(lambda: states(lazy, "chat-0.0") == ["cold"], deadline_s=180.0)
    pids = lazy.pids()
    assert "You        What is the capital of France?" in lazy.run("up", "quickstart", "--yes").stdout
    assert lazy.pids() == pids


def test_what_does_not_fit_alone_is_refused_before_anything_is_changed(lazy: Trial) -> None:
    error = lazy.run("plan", "quickstart", "models.smollm2-135m-instruct.memory_gib=0.8", code=3).stderr
    assert "it needs 0.8 GiB when it is asked for, node 'local' has 0.75 beside what always runs" in error


THIRD = """
  third:
    model: smollm2-135m-instruct
    nodes: [local]
"""


def test_what_is_to_run_always_takes_the_memory_of_the_idle_model_that_was_not_used_for_longest(lazy: Trial) -> None:
    before = lazy.file.read_text()
    wide = ("nodes.local.memory_gib=1.2", "services.chat.idle_stop_s=3600")
    budget = lazy.state / "on-demand" / "quickstart.json"
    try:
        lazy.run("apply", "quickstart", *wide, "--yes")
        for role in ("chat", "other"):
            assert ask(lazy, role, prefer="wait=100").status_code == 200
        assert states(lazy, "chat-0.0", "second-0.0") == ["ready", "ready"]
        lazy.file.write_text(STACK.format(services=SERVICES + THIRD, port=lazy.port))
        out = lazy.run("apply", "quickstart", *wide, "--yes").stdout
        assert "local/chat-0.0    unload   idle; third-0 needs its memory" in out
        assert "unload local/chat-0.0: done" in out
        assert states(lazy, "chat-0.0", "second-0.0", "third-0.0") == ["cold", "ready", "ready"]
        assert ask(lazy, "chat", prefer="wait=100").status_code == 200  # it has the memory of the other one now
        assert states(lazy, "chat-0.0", "second-0.0") == ["ready", "cold"]
        assert budget.exists()
        lazy.run("down", "quickstart", "--yes")
        assert not budget.exists()
    finally:
        lazy.file.write_text(before)
        lazy.run("apply", "quickstart", "--yes")
