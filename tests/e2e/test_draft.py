"""Draft models and prompt caches from stack files: applied, used, shown, and kept in use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import trial_in
from tests.e2e.trial import Trial, poll

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STACK = """\
# @package _global_
defaults:
  - /nodes: [local]
  - /models: [smollm2-135m-instruct, small]
  - _self_

stack: quickstart

services:
  chat:
    model: smollm2-135m-instruct
    nodes: [local]
    prompt_cache_gib: 0.25
    draft: small
    draft_tokens: 4
  lazy:
    model: smollm2-135m-instruct
    nodes: [local]
    start: on-demand
    draft: small
roles:
  chat:
    endpoints:
      chat: {{service: chat}}
  other:
    endpoints:
      lazy: {{service: lazy}}

gateway:
  node: local
  bind: 127.0.0.1
  port: {port}
"""


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return a stack whose services have a copy of their model as its draft, so that every guess is right."""
    trial = trial_in(tmp_path_factory.mktemp("drafted") / "trial", None, model=tiny_model_dir)
    try:
        trial.file.write_text(STACK.format(port=trial.port))
        (trial.conf / "models" / "small.yaml").write_text(
            f"small: {{source: 'path:{tiny_model_dir}', memory_gib: 0.25}}\n"
        )
        trial.run("apply", "quickstart", "--yes")
        yield trial
    finally:
        trial.close()


def ask(trial: Trial, role: str) -> httpx.Response:
    body = {"model": role, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "temperature": 0}
    url = f"{trial.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers={"prefer": "wait=100"}, timeout=120, trust_env=False)


def told_by(trial: Trial, slot: str) -> dict[str, Any]:
    """Return what a worker tells of itself; one that was too busy to answer in time is asked again."""
    return poll(lambda: trial.units()[slot]["worker"])


def test_a_draft_model_from_the_files_proposes_tokens_and_status_says_how_well(drafted: Trial) -> None:
    for model in ("chat", "other"):
        for _ in range(2):
            assert ask(drafted, model).status_code == 200
    for slot, limit in (("chat-0.0", 1 << 28), ("lazy-0.0", None)):
        worker = told_by(drafted, slot)
        assert worker["speculation"]["proposed"] >= worker["speculation"]["accepted"] > 0
        assert worker["prompt_cache"]["hits"] > 0
        assert limit in (None, worker["prompt_cache"]["limit_bytes"])
    speculation = told_by(drafted, "chat-0.0")["speculation"]
    assert (speculation["draft"], speculation["draft_tokens"]) == ("small", 4)
    out = drafted.run("status", "quickstart").stdout
    assert "drafted tokens accepted" in out
    assert "prompt cache hit by " in out
    used = {line["model"]: line["used_by"] for line in drafted.json("models", "ls", "quickstart")}
    assert [unit.split("@")[0] for unit in used["small"]] == ["chat-0.0", "lazy-0.0"]
    assert "No changes" in drafted.run("plan", "quickstart").stdout


def test_what_does_not_fit_with_its_draft_and_cache_is_refused_before_anything_is_changed(drafted: Trial) -> None:
    error = drafted.run("plan", "quickstart", "nodes.local.memory_gib=0.9", code=3).stderr
    assert "the models on it need 1 GiB, it offers 0.9" in error
