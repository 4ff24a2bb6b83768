"""The quickstart model, served by engines of other people: applied, asked through the gateway, changed, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trial import Trial

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def trial(tmp_path: Path, quickstart_state: Path, quickstart_gguf: Path) -> Iterator[Trial]:
    trial = Trial(tmp_path, quickstart_state)
    yield trial
    trial.close()


def test_llama_server_is_started_asked_and_replaced(trial: Trial, llama_server: Path) -> None:
    trial.edit("engine: mlx", f"engine: llama-server\n    max_batch: 2\n    args: {{program: {llama_server}}}")
    trial.run("up", "quickstart", "--yes")
    assert trial.chat().json()["usage"]["completion_tokens"] > 0
    assert "No changes" in trial.run("plan", "quickstart").stdout

    first = trial.pids()
    trial.edit(f"{{program: {llama_server}}}", f"{{program: {llama_server}, threads: 1}}")
    trial.run("apply", "quickstart", "--yes")

    assert trial.pids()["chat-0.0"] != first["chat-0.0"]
    assert trial.chat().status_code == 200
    trial.run("down", "quickstart", "--yes")
    assert trial.units() == {}


def test_stock_mlx_lm_server_answers_through_the_gateway(trial: Trial) -> None:
    trial.edit("engine: mlx", "engine: mlx-lm-server")
    out = trial.run("up", "quickstart", "--yes").stdout
    assert "Paris" in out
    assert "Paris" in trial.chat().json()["choices"][0]["message"]["content"]


def test_any_program_that_speaks_the_api_can_be_a_service(trial: Trial, llama_server: Path) -> None:
    command = f"{llama_server} --model {{model_path}} --alias {{model_name}} --host {{host}} --port {{port}}"
    trial.edit("engine: mlx", f'engine: command\n    args: {{command: "{command}"}}')
    trial.run("up", "quickstart", "--yes")
    assert trial.chat().json()["usage"]["completion_tokens"] > 0


def test_missing_program_and_wrong_arguments_are_named(trial: Trial) -> None:
    trial.edit("engine: mlx", "engine: vllm")
    failed = trial.run("apply", "quickstart", "--yes", code=4)
    assert "vllm is not on local: install vLLM there" in failed.stdout + failed.stderr

    trial.edit("engine: vllm", "engine: vllm\n    args: {host: 0.0.0.0}")
    refused = trial.run("plan", "quickstart", code=None)
    assert "services.chat.args.host: vllm gets this option from the stack" in refused.stdout + refused.stderr
    assert refused.returncode in (1, 3)
