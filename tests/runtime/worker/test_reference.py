"""What one process answers to the canary's prompts, and how a group is judged by it."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from orchestrator.canary import Asker, NoAnswerError, judge, judge_alone
from orchestrator.execute import Progress
from runtime.worker.group.identity import fingerprint
from runtime.worker.reference import refer
from schemas import exits
from schemas.canary import ANSWER_TOKENS, LONG_PROMPT, SHORT_PROMPTS, TIE, Reference
from schemas.verdict import Verdict
from tests.runtime.worker.damage import damage
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import DEADLINE_S, Worker
from tests.runtime.worker.tiny import write_model

LONG_TOKENS = 600


def silent(phase: str, done: int, total: int, unit: str) -> None:
    """Ignore how far it is."""


@pytest.fixture(scope="module")
def large_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose weights have a middle that no rank looks at when the group forms."""
    return write_model(tmp_path_factory.mktemp("large") / "model", intermediate=3072)


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path) -> Reference:
    return refer(tiny_model_dir, LONG_TOKENS, None, silent)


@pytest.fixture(scope="module")
def large_reference(large_model_dir: Path) -> Reference:
    return refer(large_model_dir, LONG_TOKENS, None, silent)


def verdict_of(worker: Worker, reference: Reference | None, progress: list[Progress] | None = None) -> Verdict:
    async def ask() -> Verdict:
        async with httpx.AsyncClient(trust_env=False) as http:
            asker = Asker(http, str(worker.http.base_url), "tiny", None, DEADLINE_S)
            report = [].append if progress is None else progress.append
            if reference is None:
                return await judge_alone(asker, LONG_TOKENS, report)
            return await judge(asker, reference, report)

    return asyncio.run(ask())


def test_a_reference_has_every_prompt_and_the_long_one_has_the_length_asked_for(reference: Reference) -> None:
    assert [answer.name for answer in reference.answers] == [*SHORT_PROMPTS, LONG_PROMPT]
    assert reference.longest == LONG_TOKENS
    assert all(len(answer.tokens) == ANSWER_TOKENS or answer.ended for answer in reference.answers)
    assert set(reference.files) == {"model.safetensors"}


def test_tokens_that_may_stand_in_for_a_choice_are_those_close_to_it(reference: Reference) -> None:
    tokens = [token for answer in reference.answers for token in answer.tokens]
    assert all(token.near[:1] == (token.token,) or not token.near for token in tokens)
    assert all((len(token.near) == 1) == (token.margin >= TIE) for token in tokens if token.near)


def test_the_long_prompt_leaves_room_for_its_answer_in_a_short_context(tiny_model_dir: Path) -> None:
    assert refer(tiny_model_dir, LONG_TOKENS, 200, silent).longest == 200 - ANSWER_TOKENS


def test_one_process_passes_the_canary_of_its_own_reference(worker: Worker, reference: Reference) -> None:
    progress: list[Progress] = []
    verdict = verdict_of(worker, reference, progress)
    assert (verdict.outcome, verdict.prompts, verdict.longest) == ("passed", 5, LONG_TOKENS)
    assert progress[-1].done == progress[-1].total
    assert any(f"{LONG_TOKENS} tokens" in step.phase for step in progress)


def test_a_reference_of_another_model_is_not_met_and_says_where(worker: Worker, large_reference: Reference) -> None:
    verdict = verdict_of(worker, large_reference)
    assert verdict.outcome == "failed"
    assert "prompt 'capital'" in verdict.words[0]
    assert "expected" in verdict.words[0]


def test_without_a_reference_the_canary_is_limited(worker: Worker) -> None:
    verdict = verdict_of(worker, None)
    assert verdict.outcome == "limited"
    assert "not compared" in verdict.words[0]


def test_a_worker_that_refuses_a_prompt_has_not_answered(worker: Worker) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            await Asker(http, str(worker.http.base_url), "another", None, DEADLINE_S).ask("a")

    with pytest.raises(NoAnswerError, match="404"):
        asyncio.run(ask())


def test_token_ids_are_told_where_they_are_asked_for(worker: Worker) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
    choice = worker.complete(**body, return_token_ids=True).json()["choices"][0]
    assert len(choice["token_ids"]) == 4
    assert "token_ids" not in worker.complete(**body).json()["choices"][0]
    assert worker.complete(**body, return_token_ids=True, stream=True).status_code == 400


def test_a_verdict_that_is_none_is_refused(worker: Worker) -> None:
    assert worker.http.post("/canary", json={"outcome": "perhaps"}).status_code == 400
    assert worker.http.get("/ready").json()["canary"] is None


def test_the_program_ends_when_who_asked_for_it_is_gone(tiny_model_dir: Path) -> None:
    argv = [sys.executable, "-m", "runtime.worker.reference", "--model-dir", str(tiny_model_dir)]
    process = subprocess.Popen(
        [*argv, "--long-tokens", "29000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 1
    process.stdout.close()


@pytest.mark.slow
def test_a_group_passes_and_keeps_its_verdict(tiny_model_dir: Path, reference: Reference, tmp_path: Path) -> None:
    with Group(tiny_model_dir, tmp_path / "group", 3) as group:
        group.wait_ready()
        verdict = verdict_of(group.lead, reference)
        assert verdict.outcome == "passed", verdict.words
        assert group.lead.http.post("/canary", json=verdict.model_dump()).status_code == 200
        assert group.lead.http.get("/ready").json()["canary"]["outcome"] == "passed"


@pytest.mark.slow
def test_a_rank_with_a_damaged_copy_forms_a_group_that_fails_the_canary_and_ends(
    large_model_dir: Path, large_reference: Reference, tmp_path: Path
) -> None:
    other = shutil.copytree(large_model_dir, tmp_path / "damaged")
    damage(other)
    assert fingerprint(other) == fingerprint(large_model_dir)
    with Group(large_model_dir, tmp_path / "group", 2, model_dirs={1: other}) as group:
        group.wait_ready()
        verdict = verdict_of(group.lead, large_reference)
        assert verdict.outcome == "failed"
        group.lead.http.post("/canary", json=verdict.model_dump())
        assert set(group.wait_exits().values()) == {exits.CANARY_FAILED}
        assert "canary failed: prompt" in group.lead.text()
