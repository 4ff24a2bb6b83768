"""What the worker relies on in mlx-lm and Sanic; a new release that breaks it fails here first."""

import inspect
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import sample_utils
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences


def test_mlx_lm_is_the_pinned_minor() -> None:
    assert version("mlx-lm").startswith("0.32.")


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (BatchGenerator.__init__, {"completion_batch_size", "prefill_batch_size", "prefill_step_size"}),
        (BatchGenerator.insert, {"max_tokens", "samplers", "logits_processors", "stop_sequences"}),
        (BatchGenerator.remove, {"uids"}),
        (mlx_lm.load, {"lazy", "return_config", "trust_remote_code"}),
        (sample_utils.make_presence_penalty, {"context_size"}),
    ],
)
def test_parameters_are_there(function: object, names: set[str]) -> None:
    assert names <= set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_code_of_a_model_is_not_run_by_default() -> None:
    assert inspect.signature(mlx_lm.load).parameters["trust_remote_code"].default is False


def test_responses_have_what_is_read() -> None:
    assert {"uid", "token", "finish_reason"} <= set(GenerationBatch.Response.__dataclass_fields__)


@pytest.fixture(scope="module")
def generator(tiny_model_dir: Path) -> BatchGenerator:
    model, _ = mlx_lm.load(str(tiny_model_dir))
    return BatchGenerator(model, completion_batch_size=2, prefill_batch_size=2)


def finish(generator: BatchGenerator) -> dict[int, list[tuple[int, str | None]]]:
    """Run the generator dry; return tokens and finish reasons of every uid."""
    seen: dict[int, list[tuple[int, str | None]]] = {}
    while True:
        prompts, responses = generator.next()
        for response in responses:
            seen.setdefault(response.uid, []).append((response.token, response.finish_reason))
        if not prompts and not responses:
            return seen


def test_every_token_is_one_response_and_the_last_has_the_reason(generator: BatchGenerator) -> None:
    first, second = generator.insert([[1, 2], [3]], max_tokens=[3, 5])
    seen = finish(generator)
    assert [reason for _, reason in seen[first]] == [None, None, "length"]
    assert [reason for _, reason in seen[second]] == [None] * 4 + ["length"]


def test_a_stop_sequence_ends_with_reason_stop_and_its_token_is_reported(generator: BatchGenerator) -> None:
    (uid,) = generator.insert([[1, 2]], max_tokens=[4])
    tokens = [token for token, _ in finish(generator)[uid]]
    (uid,) = generator.insert([[1, 2]], max_tokens=[4], stop_sequences=[StopSequences([(tokens[1],)])])
    seen = finish(generator)[uid]
    assert seen[-1] == (tokens[1], "stop")


def test_removal_works_in_every_stage_and_for_strangers(generator: BatchGenerator) -> None:
    uids = generator.insert([[1] * 5000, [2], [3]], max_tokens=[9, 9, 9])
    generator.remove([uids[2]])  # still waiting
    generator.next()
    generator.next()
    generator.remove([uids[1], 12345])  # generating, and one that never was
    generator.remove([uids[0]])
    assert finish(generator) == {}
    assert generator.prompt_cache_nbytes == 0


def test_an_empty_generator_has_nothing_to_say(generator: BatchGenerator) -> None:
    assert generator.next() == ([], [])


def test_a_missing_sampler_is_greedy_and_others_see_rows_of_log_probabilities(generator: BatchGenerator) -> None:
    shapes = []

    def sampler(logprobs: mx.array) -> mx.array:
        shapes.append(logprobs.shape)
        return mx.argmax(logprobs, axis=-1)

    greedy, sampled = generator.insert([[1, 2], [1, 2]], max_tokens=[4, 4], samplers=[None, sampler])
    seen = finish(generator)
    assert [token for token, _ in seen[greedy]] == [token for token, _ in seen[sampled]]
    assert {rows for rows, _ in shapes} == {1}


def test_processors_see_prompt_and_answer(generator: BatchGenerator) -> None:
    contexts = []

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        contexts.append(tokens.tolist())
        return logits

    (uid,) = generator.insert([[5, 6, 7]], max_tokens=[3], logits_processors=[[processor]])
    answer = [token for token, _ in finish(generator)[uid]]
    assert contexts[0] == [5, 6, 7]
    assert contexts[2] == [5, 6, 7, *answer[:2]]
