"""A draft model makes a lone request faster, and never changes what it is answered."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx import nn

from runtime.worker import arguments
from runtime.worker.batch import Batch
from runtime.worker.compute import Compute
from runtime.worker.model import LoadedModel, load
from runtime.worker.products import use_numpy
from runtime.worker.prompt_cache import PromptCache
from runtime.worker.request import Sampling
from runtime.worker.speculation import DraftError, Speculation
from runtime.worker.steps import Insert
from schemas.messages import WorkerStatus
from tests.runtime.worker.driving import GREEDY, Passes, Run, asking, prompt
from tests.runtime.worker.process import Worker
from tests.runtime.worker.tiny import write_model

SIZE = 1 << 26
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=1, seed=3),
    Sampling(temperature=0.6, top_p=0.9, min_p=0.01, seed=4),
    Sampling(temperature=1.5, top_k=40, seed=5),
]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir, None, lambda _: None)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a draft that guesses by luck alone."""
    place = write_model(tmp_path_factory.mktemp("draft") / "model", layers=1, seed=8)
    return load(place, None, lambda _: None)


def drafting(model: LoadedModel, draft: LoadedModel, count: int = 3, limit_bytes: int = SIZE) -> Run:
    return Run(Speculation(Compute(model, kept=PromptCache(limit_bytes)), draft, count))


def alone(model: LoadedModel, *inserts: Insert) -> list[list[int]]:
    return [Run(Compute(model)).finish(insert)[0] for insert in inserts]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("count", [1, 4])
def test_answers_are_those_without_a_draft(
    model: LoadedModel, stranger: LoadedModel, sampling: Sampling, count: int
) -> None:
    wanted = [Insert(job_id, prompt(model, length), 16, sampling) for job_id, length in enumerate([1, 2, 70], 1)]
    for draft in (model, stranger):
        run = drafting(model, draft, count)
        assert [run.finish(insert)[0] for insert in wanted] == alone(model, *wanted)


def test_a_draft_that_is_the_model_is_always_right_and_takes_that_many_steps_less(model: LoadedModel) -> None:
    for sampling in SAMPLINGS:
        run = drafting(model, model, 3)
        steps = 0
        assert not run.step(Insert(1, prompt(model, 5), 40, sampling)).has_computed
        while run.open:
            assert run.step().has_computed
            steps += 1
        gauges = run.compute.gauges
        assert gauges.accepted == gauges.drafted == 30
        assert steps == 10


def test_an_end_token_among_several_tokens_ends_the_answer(model: LoadedModel) -> None:
    wanted = asking(1, prompt(model, 20), 20)
    (answer,) = alone(model, wanted)
    ending = replace(model, end_tokens=frozenset([answer[5]]))
    run = drafting(ending, model, 4)
    assert run.finish(wanted)[0] == answer[: answer.index(answer[5]) + 1]
    assert run.compute.gauges.kv_bytes == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=st.sampled_from(SAMPLINGS),
    length=st.integers(1, 90),
    before=st.integers(0, 8),
    is_stranger=st.booleans(),
    others=st.integers(1, 2),
)
@pytest.mark.slow
def test_a_lone_request_goes_on_in_the_batch_when_others_come(
    model: LoadedModel,
    stranger: LoadedModel,
    sampling: Sampling,
    length: int,
    before: int,
    is_stranger: bool,
    others: int,
) -> None:
    run = drafting(model, stranger if is_stranger else model)
    first = Insert(1, prompt(model, length), 20, sampling)
    more = [replace(first, id=2 + index, tokens=prompt(model, 10, index)) for index in range(others)]
    run.step(first)
    for _ in range(before):
        run.step()
    run.step(*more)
    while run.open:
        run.step()
    assert [run.answers[each.id] for each in (first, *more)] == alone(model, first, *more)
    assert run.finish(asking(9, prompt(model, 30)))[0] == alone(model, asking(9, prompt(model, 30)))[0]


def test_the_next_turn_computes_only_what_is_new_with_both_models(model: LoadedModel, stranger: LoadedModel) -> None:
    run = drafting(model, stranger)
    first = asking(1, prompt(model, 80))
    (answer,) = run.finish(first)
    second = asking(2, [*first.tokens, *answer, *prompt(model, 9, seed=2)])
    assert run.finish(second) == alone(model, second)
    assert run.known == {1: 0, 2: 85}  # the last token of an answer is computed only when something follows
    assert run.compute.gauges.kept == 2


def test_a_short_prompt_that_begins_like_a_long_one_is_kept_small(model: LoadedModel, stranger: LoadedModel) -> None:
    run = drafting(model, stranger)
    long = prompt(model, 700)
    run.finish(asking(1, long))
    before = run.compute.gauges.kept_bytes
    run.finish(asking(2, [long[0], *prompt(model, 4, seed=2)]))
    assert run.known[2] == 1
    # Of 768 places for the long one, 256 for the short one.
    assert (run.compute.gauges.kept_bytes - before) * 3 == before


def test_the_end_of_a_known_prompt_is_one_pass_with_the_first_guesses(
    model: LoadedModel, stranger: LoadedModel
) -> None:
    passes = Passes(model.module)
    run = drafting(replace(model, module=passes), stranger)
    first = prompt(model, 100)
    run.finish(asking(1, first))
    passes.shapes.clear()
    again = asking(2, [*first, *prompt(model, 5, seed=2)])
    run.step(again)
    assert run.step().tokens
    assert passes.shapes == [(1, 5 + 3)]
    assert run.finish() == []
    assert run.answers[2] == alone(model, again)[0]


def test_what_is_kept_makes_room_for_a_lone_request(model: LoadedModel, stranger: LoadedModel) -> None:
    sizes = drafting(model, stranger)
    sizes.finish(asking(1, prompt(model, 20)))
    kept = sizes.compute.gauges.kept_bytes
    run = drafting(model, stranger, limit_bytes=2 * kept)
    run.finish(asking(1, prompt(model, 20)))
    assert run.compute.gauges.kept == 2
    run.step(asking(2, prompt(model, 600, seed=2), 30))
    while 2 not in run.answers:
        run.step()
    gauges = run.compute.gauges
    assert gauges.kv_bytes > gauges.kept_limit
    assert gauges.kept == 0


class Failing:
    """A model whose every computation fails from the `after`th on."""

    def __init__(self, module: Any, after: int) -> None:
        self._module = module
        self._left = after

    @property
    def layers(self) -> Any:
        return self._module.layers

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("no such kernel")
        return self._module(*inputs, **more)


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_draft_that_fails_is_dropped_and_the_request_goes_on_in_the_batch(
    model: LoadedModel, stranger: LoadedModel, after: int
) -> None:
    run = drafting(model, replace(stranger, module=Failing(stranger.module, after)))
    for sampling in SAMPLINGS[:2]:
        wanted = Insert(1 + SAMPLINGS.index(sampling), prompt(model, 40), 20, sampling)
        assert run.finish(wanted) == alone(model, wanted)
    gauges = run.compute.gauges
    assert gauges.draft_failure == "ValueError('no such kernel')"
    assert gauges.draft_bytes == 0


class FailingLate:
    """A model whose logits cannot be computed, which is found only when somebody reads them."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def layers(self) -> Any:
        return self._module.layers

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        return self._module(*inputs, **more) + mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)[0, 0]


@pytest.mark.parametrize("is_quantised", [False, True])
def test_guesses_that_cannot_be_computed_are_blamed_on_the_draft(
    stranger: LoadedModel,
    is_quantised: bool,
    tmp_path: Path,
) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    model = load(write_model(tmp_path / "model", hidden_size=64, **heads), None, lambda _: None)
    if is_quantised:
        nn.quantize(model.module, 32, 4)
        use_numpy(model.module)
    run = drafting(model, replace(stranger, module=FailingLate(stranger.module)))
    wanted = asking(1, prompt(model, 40))
    assert run.finish(wanted) == alone(model, wanted)
    assert "Inverse" in (run.compute.gauges.draft_failure or "")


@pytest.mark.parametrize("after", [0, 1, 100])
def test_the_warm_up_computes_with_the_draft_and_leaves_no_trace(
    model: LoadedModel, stranger: LoadedModel, after: int
) -> None:
    draft = replace(stranger, module=Failing(stranger.module, after))
    steps = Speculation(Compute(model, kept=PromptCache(SIZE)), draft, 3)
    Batch(model, 4, steps).warm_up()
    gauges = steps.gauges
    assert (gauges.draft_failure is None) == (after == 100)
    assert (gauges.kept, gauges.lookups, gauges.drafted, gauges.kv_bytes) == (0, 0, 0, 0)


def test_a_request_that_leaves_frees_everything(model: LoadedModel, stranger: LoadedModel) -> None:
    for steps in (0, 1, 4):
        run = drafting(model, stranger, limit_bytes=0)
        run.step(asking(1, prompt(model, 40), 50))
        for _ in range(steps):
            run.step()
        run.step(removes=(1,))
        assert run.compute.gauges.kv_bytes == 0
        run.step(asking(2, prompt(model, 40), 50))
        assert run.compute.gauges.kv_bytes >= 0
        run.step(removes=(2,))


@pytest.mark.parametrize("more", [{"logprobs": 2}, {"sampling": Sampling(temperature=0, logit_bias=((5, 1.0),))}])
def test_what_looks_at_every_token_is_computed_without_the_draft(model: LoadedModel, more: dict[str, object]) -> None:
    run = drafting(model, model)
    run.finish(replace(asking(1, prompt(model, 9)), **more))
    assert run.compute.gauges.drafted == 0


def test_a_draft_with_another_vocabulary_is_refused(model: LoadedModel, stranger: LoadedModel) -> None:
    class Renamed:
        def get_vocab(self) -> dict[str, int]:
            return {"the": 1}

    with pytest.raises(DraftError, match="another vocabulary: its token 'the'"):
        drafting(model, replace(stranger, tokenizer=Renamed()))


def test_a_draft_that_cannot_take_back_a_guess_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    more = {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    window = load(write_model(tmp_path / "model", "gemma3_text", **more), None, lambda _: None)
    with pytest.raises(DraftError, match="the draft model keeps a RotatingKVCache"):
        drafting(model, window)


@pytest.mark.slow
def test_a_worker_with_a_draft_answers_as_one_without_and_counts_its_guesses(
    worker: Worker, tiny_model_dir: Path, tmp_path: Path
) -> None:
    more = ["--max-batch", "4", "--draft-model", str(tiny_model_dir), "--draft-tokens", "2"]
    wanted = [{"prompt": "the lazy dog", "max_tokens": 30, "temperature": 1, "seed": seed} for seed in range(5)]
    with Worker(tiny_model_dir, tmp_path / "log", *more) as drafted:
        drafted.wait_ready()
        expected = [worker.text_of(**body) for body in wanted]
        assert [drafted.text_of(**body) for body in wanted] == expected
        status = WorkerStatus.model_validate(drafted.status())
        assert status.speculation is not None
        assert (status.speculation.draft, status.speculation.draft_tokens) == (tiny_model_dir.name, 2)
        assert status.speculation.accepted == status.speculation.proposed == 100
        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(lambda body: drafted.text_of(**body), wanted)) == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--draft-tokens", "0"], "must be between 1 and 16"),
        (["--kind", "embedding", "--draft-model", "d"], "--draft-model goes with one chat model in one process"),
    ],
)
def test_a_draft_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    with pytest.raises(SystemExit):
        arguments.parse(["--model-dir", "m", "--name", "n", "--port", "0", *more])
    assert words in capsys.readouterr().err
