"""What the worker relies on in mlx-lm and Sanic; a new release that breaks it fails here first."""

import importlib
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import mlx_lm.models
import pytest
from mlx_lm import sample_utils
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences, generation_stream
from mlx_lm.models.pipeline import PipelineMixin
from mlx_lm.utils import MODEL_REMAPPING

from schemas.sharding import PIPELINE_MODELS, TENSOR_MODELS


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


def test_collectives_beside_the_batch_are_in_its_stream(generator: BatchGenerator) -> None:
    assert generator.stream is generation_stream


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


def family(kind: str) -> Any:
    """Return the module in which mlx-lm keeps a type of model."""
    return importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")


def families_with(words: str) -> set[str]:
    """Return the types of model whose module says `words` itself."""
    return {
        path.stem for path in Path(mlx_lm.models.__path__[0]).glob("*.py") if words in path.read_text(encoding="utf-8")
    }


def test_the_models_with_tensor_sharding_are_those_we_name() -> None:
    assert families_with("def shard(") <= TENSOR_MODELS
    assert [kind for kind in sorted(TENSOR_MODELS) if not hasattr(family(kind).Model, "shard")] == []


def test_the_models_with_a_pipeline_are_those_we_name() -> None:
    assert families_with("(PipelineMixin") <= PIPELINE_MODELS
    for kind in sorted(PIPELINE_MODELS):
        module = family(kind)
        parents = {inspect.getmodule(parent) for parent in module.Model.__mro__}
        classes = [value for parent in {module, *parents} for value in vars(parent).values() if inspect.isclass(value)]
        assert any(hasattr(each, "pipeline") for each in classes), kind


def test_a_pipeline_takes_the_layers_of_each_rank() -> None:
    assert "split" in inspect.signature(PipelineMixin.pipeline).parameters


def test_a_shared_sampler_is_the_generators_own(generator: BatchGenerator) -> None:
    own = BatchGenerator(generator.model, sampler=lambda logprobs: mx.zeros(logprobs.shape[0], dtype=mx.uint32))
    (uid,) = own.insert([[1, 2]], max_tokens=[3], samplers=[None])
    assert [token for token, _ in finish(own)[uid]] == [0, 0, 0]
