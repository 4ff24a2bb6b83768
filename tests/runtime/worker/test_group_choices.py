"""Every rank of a group knows the same of prompts, gives the same choices and the same log probabilities."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.worker import bodies
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import Worker
from tests.runtime.worker.tiny import write_model

TRUNK = "the quick brown fox jumps over the lazy dog " * 8
REQUESTS: list[dict[str, Any]] = [
    {"prompt": TRUNK + end, "max_tokens": 12, "temperature": 0} for end in ("", "a", "and asks", "user: the question")
] + [
    {"prompt": TRUNK, "max_tokens": 12, "temperature": 1, "seed": 3, "n": 3},
    {"prompt": TRUNK + "b", "max_tokens": 12, "temperature": 1, "seed": 4, "n": 6, "logit_bias": {"40": 5}},
    {"prompt": "a", "max_tokens": 12, "temperature": 1, "seed": 5, "logprobs": 3},
]


def texts(worker: Worker) -> list[list[str]]:
    """Ask everything in turn, then everything at once, twice; return the texts of all choices."""

    def ask(body: dict[str, Any]) -> list[str]:
        response = worker.complete(**body)
        assert response.status_code == 200, response.text
        return [choice["text"] for choice in response.json()["choices"]]

    told = [ask(body) for body in REQUESTS]
    with ThreadPoolExecutor(4) as pool:
        told += pool.map(ask, [*REQUESTS, *REQUESTS])
    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy", "size", "split", "gib"),
    [
        ("llama", "tensor", 3, None, "1"),
        # The ranks hold caches of different sizes, and there is room for a few prompts only.
        ("qwen2", "pipeline", 2, "3,1", "0.0015"),
        ("qwen2", "pipeline", 3, "2,1,1", "0.0015"),
    ],
)
def test_a_group_with_a_prompt_cache_answers_as_one_process_without(
    tmp_path: Path, kind: str, strategy: str, size: int, split: str | None, gib: str
) -> None:
    place = write_model(tmp_path / "model", kind, layers=4)
    with Worker(place, tmp_path / "log", "--max-batch", "4", "--prompt-cache-gib", "0") as worker:
        expected = texts(worker.wait_ready())
        assert worker.status()["prompt_cache"] is None
    options = ["--max-batch", "4", "--prompt-cache-gib", gib]
    with Group(place, tmp_path / "group", size, *options, strategy=strategy, split=split) as group:
        group.wait_ready()
        assert texts(group.lead) == expected
        cache = group.lead.status()["prompt_cache"]
        assert cache["hits"] > 10
        assert 0 < cache["bytes"] <= cache["limit_bytes"]
        messages = [{"role": "user", "content": "what is the answer? " * 20}]
        first = group.lead.chat(**bodies.chat(messages=messages, max_tokens=5, temperature=0)).json()
        messages += [first["choices"][0]["message"], {"role": "user", "content": "why?"}]
        usage = group.lead.chat(messages=messages, max_tokens=5).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1
        assert group.lead.http.get("/ready").status_code == 200
