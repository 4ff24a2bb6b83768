"""A step reads of each prompt what it is told to, and the ranks agree once on the tokens of all rows."""

from pathlib import Path

import mlx.core as mx
import pytest

from runtime.worker.compute import Compute
from runtime.worker.model import LoadedModel, load
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert
from tests.runtime.worker.driving import Run, asking, prompt


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir, None, lambda _: None)


@pytest.mark.parametrize("size", [32, 64, 1024])
def test_a_step_reads_as_many_tokens_as_it_is_told(model: LoadedModel, size: int) -> None:
    compute, tokens = Compute(model, 4), prompt(model, 1000)
    step, rounds = compute.step(Commands([asking(1, tokens)], prefill_tokens=size)), 1
    while not step.tokens:
        step, rounds = compute.step(Commands(prefill_tokens=size)), rounds + 1
    # One more gives the last token of the prompt to the model, and one takes what came of it.
    assert rounds == -(-999 // size) + 2
    assert step.tokens[0].token == Run(Compute(model, 4)).finish(asking(1, tokens))[0][0]


def test_the_ranks_agree_once_on_the_tokens_of_all_rows(model: LoadedModel) -> None:
    rows: list[int] = []

    def agree(tokens: mx.array) -> mx.array:
        rows.append(tokens.size)
        return tokens

    wanted = [asking(1, prompt(model, 20, 1), 8)]
    wanted += [
        Insert(each, prompt(model, 20, each), 8, Sampling(temperature=1, seed=each, top_p=0.9)) for each in (2, 3, 4)
    ]
    run = Run(Compute(model, 4, agree=agree))
    answers = run.finish(*wanted)
    assert answers == Run(Compute(model, 4)).finish(*wanted)
    assert rows == [4] * 8


def test_what_is_agreed_on_counts(model: LoadedModel) -> None:
    run = Run(Compute(model, 4, agree=lambda tokens: mx.full(tokens.shape, 7, dtype=tokens.dtype)))
    sampled = Insert(2, prompt(model, 9, 2), 4, Sampling(temperature=1, seed=2))
    assert run.finish(asking(1, prompt(model, 20), 4), sampled) == [[7] * 4] * 2
