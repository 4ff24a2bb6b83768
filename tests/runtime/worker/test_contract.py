"""What the worker relies on in mlx-lm and Sanic; a new release that breaks it fails here first."""

import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import mlx_lm.models
import pytest
from mlx_lm import sample_utils
from mlx_lm.models.cache import TokenBuffer, make_prompt_cache
from mlx_lm.models.pipeline import PipelineMixin
from mlx_lm.utils import MODEL_REMAPPING, maybe_set_recommended_wired_limit

from schemas.sharding import PIPELINE_MODELS, TENSOR_MODELS, UNBATCHED_MODELS
from tests.runtime.worker.tiny import LFM2, write_model


def test_mlx_lm_is_the_pinned_minor() -> None:
    assert version("mlx-lm").startswith("0.32.")


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (mlx_lm.load, {"lazy", "return_config", "trust_remote_code"}),
        (sample_utils.make_presence_penalty, {"context_size"}),
    ],
)
def test_parameters_are_there(function: object, names: set[str]) -> None:
    assert names <= set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_code_of_a_model_is_not_run_by_default() -> None:
    assert inspect.signature(mlx_lm.load).parameters["trust_remote_code"].default is False


def test_the_memory_that_is_not_swapped_can_be_raised() -> None:
    assert inspect.signature(maybe_set_recommended_wired_limit).return_annotation == int | None


def test_what_processors_see_grows_by_what_is_not_computed_yet() -> None:
    buffer = TokenBuffer([5, 6])
    assert buffer.tokens.tolist() == [5, 6]
    assert buffer.update_and_fetch(mx.array([3]) + 4).tolist() == [5, 6, 7]


CACHES: dict[str, dict[str, object]] = {
    "llama": {},
    "gemma3_text": {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "lfm2": LFM2,
}


@pytest.mark.parametrize("kind", CACHES)
def test_caches_are_merged_padded_multiplied_and_taken_apart(tmp_path: Path, kind: str) -> None:
    model: Any = mlx_lm.load(str(write_model(tmp_path / "model", kind, **CACHES[kind])))[0]

    def alone(*parts: list[int]) -> mx.array:
        caches = make_prompt_cache(model)
        return [model(mx.array([part]), cache=caches)[0, -1] for part in parts][-1]

    def of(tokens: list[int]) -> list[Any]:
        caches = make_prompt_cache(model)
        model(mx.array([tokens]), cache=caches)
        return caches

    long, short = list(range(3, 24)), [40, 41]
    merged = [layer[0].merge(list(layer)) for layer in zip(of(long), of(short), strict=True)]
    for cache in merged:
        cache.prepare(lengths=[1, 3], right_padding=[2, 0])
    logits = model(mx.array([[50, 0, 0], [60, 61, 62]]), cache=merged)
    for cache in merged:
        cache.finalize()
    assert mx.allclose(logits[0, 0], alone(long, [50]), atol=1e-4)
    assert mx.allclose(logits[1, 2], alone(short, [60, 61, 62]), atol=1e-4)
    more = [layer[0].merge(list(layer)) for layer in zip(of([9, 8]), strict=True)]
    for cache, other in zip(merged, more, strict=True):
        cache.extend(other)
        cache.filter([1, 1, 2])
    logits = model(mx.array([[70], [71], [72]]), cache=merged)
    assert mx.allclose(logits[0, 0], alone(short, [60, 61, 62], [70]), atol=1e-4)
    assert mx.allclose(logits[1, 0], alone(short, [60, 61, 62], [71]), atol=1e-4)
    assert mx.allclose(logits[2, 0], alone([9, 8], [72]), atol=1e-4)
    taken = [cache.extract(1) for cache in merged]
    assert mx.allclose(model(mx.array([[73]]), cache=taken)[0, 0], alone(short, [60, 61, 62], [71], [73]), atol=1e-4)
    assert all(cache.nbytes > 0 for cache in merged)


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


def test_the_models_whose_caches_cannot_be_merged_are_those_we_name() -> None:
    """A family makes its caches of the classes that its module names; `cache` itself is no family."""

    def unmerged(kind: str) -> set[str]:
        module = family(kind)
        makers = [each for each in vars(module).values() if inspect.isclass(each) and hasattr(each, "make_cache")]
        made = {word for each in makers for word in re.findall(r"\b(\w+Cache)\(", inspect.getsource(each.make_cache))}
        return {word for word in made if not hasattr(getattr(module, word), "merge")}

    kinds = families_with("def make_cache(") - {"cache"}
    assert {kind for kind in kinds if unmerged(kind)} | {"deepseek_v41_text"} == UNBATCHED_MODELS
    assert MODEL_REMAPPING["deepseek_v41_text"] == "deepseek_v41"


def test_a_pipeline_takes_the_layers_of_each_rank() -> None:
    assert "split" in inspect.signature(PipelineMixin.pipeline).parameters
