"""SmolLM2 through conversion and worker: an answer that is right, from real weights."""

import json
from pathlib import Path

import pytest

from tests.runtime.worker.process import Worker


@pytest.mark.e2e
@pytest.mark.slow  # `make test` asks the same through the gateway, in tests/e2e
def test_the_capital_of_france_is_paris(quickstart_model_dir: Path, tmp_path: Path) -> None:
    question = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    with Worker(quickstart_model_dir, tmp_path / "log") as worker:
        worker.wait_ready()
        answer = worker.chat(**question).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        stream = worker.chat(**question, stream=True).text
        datas = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
        texts = [json.loads(data)["choices"][0]["delta"].get("content", "") for data in datas[:-1]]
        assert "".join(texts) == answer["choices"][0]["message"]["content"]
