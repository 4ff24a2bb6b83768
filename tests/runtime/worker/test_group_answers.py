"""A group answers what one process answers, to one request and to many, however it is spread."""

import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.worker.group import Group
from tests.runtime.worker.process import Worker, wait_idle, wait_until
from tests.runtime.worker.tiny import write_model

PROMPTS = ["the quick brown fox", "user assistant system: the answer", "a", "lazy dog " * 30]
REQUESTS: list[dict[str, Any]] = [
    *({"prompt": prompt, "max_tokens": 24, "temperature": 0} for prompt in PROMPTS),
    {"prompt": PROMPTS[0], "max_tokens": 24, "temperature": 1, "seed": 5},
    {"prompt": PROMPTS[1], "max_tokens": 24, "temperature": 0.7, "top_p": 0.9, "seed": 6, "frequency_penalty": 1.5},
]
SPREADS = [
    ("llama", "tensor", 2, None),
    ("qwen3", "tensor", 3, None),
    ("qwen2", "pipeline", 2, None),
    ("qwen2", "pipeline", 2, "5,1"),
    ("qwen2", "pipeline", 3, "3,2,1"),
    ("qwen2", "pipeline", 3, "12,10,8"),
]


@pytest.fixture(scope="module")
def group(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with Group(tiny_model_dir, tmp_path_factory.mktemp("group"), 3, "--max-batch", "4") as group:
        yield group.wait_ready()


def answers(worker: Worker) -> list[str]:
    """Ask everything in turn, then everything at once."""
    in_turn = [worker.text_of(**body) for body in REQUESTS]
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        at_once = list(pool.map(lambda body: worker.text_of(**body), REQUESTS))
    return in_turn + at_once


def test_three_ranks_answer_as_one_process_does(group: Group, worker: Worker) -> None:
    assert answers(group.lead) == answers(worker)


def test_a_group_counts_tokens_as_one_process_does(group: Group, worker: Worker) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPTS[1]}]}
    found = [each.http.post("/tokenize", json=asked).json() for each in (group.lead, worker)]
    assert found[0] == found[1]
    assert found[0]["count"] > 0


def test_a_stream_gives_the_text_of_the_whole_answer(group: Group) -> None:
    body = {"prompt": "the quick", "max_tokens": 30, "temperature": 0}
    lines = group.lead.complete(**body, stream=True).text.splitlines()
    datas = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert datas[-1] == "[DONE]"
    text = "".join(json.loads(data)["choices"][0]["text"] for data in datas[:-1])
    assert text == group.lead.text_of(**body)


def test_a_stop_string_ends_one_request_and_leaves_the_others(group: Group, worker: Worker) -> None:
    body = {"prompt": "the quick brown fox", "max_tokens": 40, "temperature": 0}
    whole = worker.text_of(**body)
    stopped = {**body, "stop": whole[10:13]}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda body: group.lead.text_of(**body), [stopped, body])
    assert (first, second) == (worker.text_of(**stopped), whole)


def test_unseeded_sampling_is_the_same_on_every_rank(group: Group) -> None:
    texts = {group.lead.text_of(prompt="a", max_tokens=20, temperature=1.5) for _ in range(3)}
    assert len(texts) > 1  # and the group lives: ranks that had drawn differently would have ended it
    assert group.lead.http.get("/ready").status_code == 200


def test_what_is_kept_of_prompts_changes_no_answer_however_often_one_is_asked(group: Group, worker: Worker) -> None:
    """Sizes are agreed on while the batch's step ahead is under way: both go over the same link."""
    body = {"prompt": "the quick brown fox jumps over", "max_tokens": 24, "temperature": 0}
    assert {group.lead.text_of(**body) for _ in range(8)} == {worker.text_of(**body)}


@pytest.mark.parametrize("seed", [None, 3])
def test_a_client_that_leaves_frees_its_place_and_the_next_is_served(group: Group, seed: int | None) -> None:
    expected = group.lead.text_of(**REQUESTS[0])
    # As good as greedy: hotter, an answer may end by itself.
    body = {"prompt": "the quick", "max_tokens": 20_000, "temperature": 0.1, "seed": seed, "stream": True}
    group.lead.wait_empty()
    with group.lead.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # as long as it is held, the connection stays
        next(lines)
        assert group.lead.status()["queue"]["batch"] == 1
    group.lead.wait_empty()
    assert group.lead.text_of(**REQUESTS[0]) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_place(group: Group, stream: bool) -> None:
    expected = group.lead.text_of(**REQUESTS[0])
    body = {"prompt": [5] * 25_000, "max_tokens": 4000, "stream": stream, "seed": 2, "temperature": 0.1}
    group.lead.wait_empty()
    cancelled = group.lead.status()["requests"]["cancelled"]
    with group.lead.sending("/v1/completions", body):
        wait_until(lambda: group.lead.status()["queue"]["batch"] == 1, "it is in the batch")
    group.lead.wait_empty()
    assert group.lead.status()["requests"]["cancelled"] == cancelled + 1
    assert group.lead.text_of(**REQUESTS[0]) == expected


def test_status_knows_every_rank(group: Group) -> None:
    def seen() -> dict[str, Any] | None:
        report = group.lead.status()["group"]
        return report if all(rank["memory"] and rank["memory"]["model_bytes"] for rank in report["ranks"]) else None

    report = wait_until(seen, "every rank has told its memory")
    assert (report["size"], report["backend"], report["strategy"]) == (3, "ring", "tensor")
    assert [rank["phase"] for rank in report["ranks"]] == ["ready"] * 3
    assert report["ranks"][0]["heartbeat_age_s"] is None
    assert all(0 <= rank["heartbeat_age_s"] < 15 for rank in report["ranks"][1:])
    whole = group.lead.status()["memory"]["model_bytes"]
    assert all(rank["memory"]["model_bytes"] == whole for rank in report["ranks"])


def test_an_idle_group_uses_no_cpu(group: Group) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc on this system")

    def has_measured() -> bool:
        """Tell whether 4 MiB were added up just now: that is done once a minute, and takes a tenth of a second."""
        link = group.lead.status()["group"]["ranks"][0]["link"]
        return link is not None and link["bandwidth_age_s"] is not None and link["bandwidth_age_s"] < 40

    wait_until(has_measured, "it is idle, and has measured its links")
    # One collective that waits takes a whole core.
    wait_idle([process.pid for process in group.processes.values()], 3, 0.15)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str]]]:
    """Return what gives a model of a type, and what one process answers with it."""

    @functools.cache
    def make(kind: str) -> tuple[Path, list[str]]:
        place = tmp_path_factory.mktemp(kind)
        model = write_model(place / "model", kind, layers=6)
        with Worker(model, place / "log") as single:
            return model, answers(single.wait_ready())

    return make


def check_spread(place: Path, reference: tuple[Path, list[str]], strategy: str, size: int, split: str | None) -> None:
    model, expected = reference
    with Group(model, place, size, strategy=strategy, split=split) as group:
        assert answers(group.wait_ready().lead) == expected


def test_a_pipeline_answers_as_one_process_does(
    tmp_path: Path, reference: Callable[[str], tuple[Path, list[str]]]
) -> None:
    check_spread(tmp_path, reference("qwen2"), "pipeline", 2, "4,2")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy", "size", "split"), SPREADS)
def test_every_spread_answers_as_one_process_does(
    tmp_path: Path,
    reference: Callable[[str], tuple[Path, list[str]]],
    kind: str,
    strategy: str,
    size: int,
    split: str | None,
) -> None:
    check_spread(tmp_path, reference(kind), strategy, size, split)


@pytest.mark.slow
def test_three_ranks_of_a_real_model_answer_as_one_process_does(quickstart_model_dir: Path, tmp_path: Path) -> None:
    question = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }

    def ask(worker: Worker) -> str:
        worker.http.timeout = 300
        return worker.chat(**question).json()["choices"][0]["message"]["content"]

    with Worker(quickstart_model_dir, tmp_path / "single.log") as single:
        expected = ask(single.wait_ready())
    assert "Paris" in expected
    with Group(quickstart_model_dir, tmp_path / "group", 3) as group:
        assert ask(group.wait_ready().lead) == expected
