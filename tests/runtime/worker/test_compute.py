"""A step reads of each prompt what it is told to, and the ranks agree once on the tokens of all rows."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from runtime.worker.compute import Compute
from runtime.worker.model import LoadedModel, load
from runtime.worker.prompt_cache import PromptCache
from runtime.worker.request import Sampling
from runtime.worker.sampling import Chooser
from runtime.worker.steps import Commands, Insert
from tests.runtime.worker.driving import Passes, Run, asking, prompt


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir, None, lambda _: None)


@pytest.mark.parametrize(("size", "steps"), [(32, 32), (64, 17), (1024, 2)])
def test_a_step_reads_as_many_tokens_as_it_is_told(model: LoadedModel, size: int, steps: int) -> None:
    compute, tokens = Compute(model), prompt(model, 1000)
    step, rounds = compute.step(Commands([asking(1, tokens)], prefill_tokens=size)), 1
    while not step.tokens:
        step, rounds = compute.step(Commands(prefill_tokens=size)), rounds + 1
    # The last few tokens, or else the last one, come with the first one of the answer.
    assert rounds == steps
    assert step.tokens[0].token == Run(Compute(model)).finish(asking(1, tokens))[0][0]


def test_the_ranks_agree_once_on_the_tokens_of_all_rows(model: LoadedModel) -> None:
    rows: list[int] = []

    def agree(tokens: mx.array) -> mx.array:
        rows.append(tokens.size)
        return tokens

    wanted = [asking(1, prompt(model, 20, 1), 8)]
    wanted += [
        Insert(each, prompt(model, 20, each), 8, Sampling(temperature=1, seed=each, top_p=0.9)) for each in (2, 3, 4)
    ]
    run = Run(Compute(model, agree=agree))
    answers = run.finish(*wanted)
    assert answers == Run(Compute(model)).finish(*wanted)
    assert rows == [4] * 8


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_the_first_token_behind_a_known_beginning_is_one_pass_and_every_other_one_more(
    model: LoadedModel, looks_ahead: bool
) -> None:
    passes = Passes(model.module)
    counted = replace(model, module=passes)
    run = Run(Compute(counted, kept=PromptCache(1 << 26), looks_ahead=looks_ahead))
    first = prompt(model, 100)
    run.finish(asking(1, first))
    passes.shapes.clear()
    step = run.step(asking(2, [*first, *prompt(model, 5, 2)], 3))
    assert [token.id for token in step.tokens] == [2]
    while run.open:
        run.step()
    assert run.known[2] == 100
    assert passes.shapes == [(1, 5), (1, 1), (1, 1)]


def test_choices_of_one_prompt_are_one_pass_up_to_their_first_tokens(model: LoadedModel) -> None:
    passes = Passes(model.module)
    counted = replace(model, module=passes)
    wanted = [Insert(each, prompt(model, 20), 3, Sampling(temperature=1, seed=each), shares=1) for each in (1, 2, 3)]
    Run(Compute(counted)).finish(*wanted)
    assert passes.shapes == [(1, 20), (3, 1), (3, 1)]


def test_the_ends_of_many_prompts_are_not_one_pass_of_all_their_logits(model: LoadedModel) -> None:
    passes = Passes(model.module)
    run = Run(Compute(replace(model, module=passes)))
    wanted = [asking(each, prompt(model, 30, each), 2) for each in range(1, 10)]
    answers = run.finish(*wanted)
    assert passes.shapes == [(9, 29), (9, 1), (9, 1)]
    assert answers == [Run(Compute(model)).finish(each)[0] for each in wanted]


def test_looking_ahead_changes_no_answer(model: LoadedModel) -> None:
    wanted = [asking(1, prompt(model, 70), 1), asking(2, prompt(model, 9, 2), 40), asking(3, prompt(model, 33, 3), 7)]
    penalty = Sampling(temperature=1, seed=4, repetition_penalty=1.5)
    wanted += [Insert(4, prompt(model, 20, 4), 9, penalty, logprobs=2)]
    wanted += [Insert(each, prompt(model, 50, 5), 9, Sampling(temperature=1, seed=each), shares=5) for each in (5, 6)]
    runs = [Run(Compute(model, looks_ahead=looks_ahead)) for looks_ahead in (False, True)]
    answers = [run.finish(*wanted) for run in runs]
    assert answers[0] == answers[1]
    assert [len(answer) for answer in answers[0]] == [1, 40, 7, 9, 9, 9]
    assert answers[0] == [Run(Compute(model)).finish(replace(each, shares=None))[0] for each in wanted]


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_an_end_token_ends_its_line_alone_and_what_is_kept_is_what_was_computed(
    model: LoadedModel, looks_ahead: bool
) -> None:
    tokens = prompt(model, 30)
    (answer,) = Run(Compute(model)).finish(asking(1, tokens, 12))
    end = next(token for at, token in enumerate(answer) if at > 2 and token not in answer[:at])
    ends = replace(model, end_tokens=frozenset({end}))
    run = Run(Compute(ends, kept=PromptCache(1 << 26), looks_ahead=looks_ahead))
    other = prompt(model, 8, 2)
    ended, whole = run.finish(asking(1, tokens, 12), asking(2, other, 20))
    assert ended == answer[: answer.index(end) + 1]
    assert whole == Run(Compute(ends)).finish(asking(2, other, 20))[0]
    again = [*tokens, *ended, *prompt(model, 40, 3)]
    assert run.finish(asking(3, again)) == Run(Compute(ends)).finish(asking(3, again))
    # The end token itself was computed only where the step after it was begun already.
    assert run.known[3] == len(tokens) + len(ended) - (not looks_ahead)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_lines_leave_in_every_stage_and_the_others_go_on(model: LoadedModel, looks_ahead: bool) -> None:
    run = Run(Compute(model, looks_ahead=looks_ahead))
    long, short, stays = (prompt(model, length, length) for length in (500, 5, 90))
    run.step(asking(1, long, 9), asking(2, short, 9), asking(3, stays, 9))
    run.step(removes=(1, 2, 12345))
    while run.open:
        run.step()
    assert run.answers[3] == Run(Compute(model)).finish(asking(3, stays, 9))[0]
    assert run.compute.gauges.kv_bytes == 0


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_processors_see_prompt_and_answer_and_samplers_rows_of_log_probabilities(
    model: LoadedModel, looks_ahead: bool
) -> None:
    contexts, shapes = [], []

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        contexts.append(tokens.tolist())
        return logits

    def sampler(logprobs: mx.array) -> mx.array:
        shapes.append(logprobs.shape)
        return mx.argmax(logprobs, axis=-1)

    run = Run(Compute(model, lambda *_: Chooser(sampler, [processor]), looks_ahead=looks_ahead))
    (answer,) = run.finish(asking(1, [5, 6, 7], 3))
    assert contexts == [[5, 6, 7], [5, 6, 7, answer[0]], [5, 6, 7, *answer[:2]]]
    assert shapes == [(1, model.limits.vocabulary)] * 3


def test_what_has_nothing_to_compute_is_refused(model: LoadedModel) -> None:
    step = Compute(model).step(Commands([asking(1, []), asking(2, [3], 0)]))
    assert step.refused == [1, 2]


def test_what_is_agreed_on_counts(model: LoadedModel) -> None:
    run = Run(Compute(model, agree=lambda tokens: mx.full(tokens.shape, 7, dtype=tokens.dtype)))
    sampled = Insert(2, prompt(model, 9, 2), 4, Sampling(temperature=1, seed=2))
    assert run.finish(asking(1, prompt(model, 20), 4), sampled) == [[7] * 4] * 2
