"""Products with quantised weights are those of MLX, however many rows and whichever layer computes them."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from runtime.worker.products import BLOCK, MOST_READ, product, use_numpy

on_a_linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device().type != mx.DeviceType.cpu, reason="MLX's own kernels are quick here"
)


def quantised(bits: int, group: int, width: int, height: int, *, bias: bool = True) -> Any:
    layer = nn.Linear(width, height, bias=bias)
    layer.weight += 0.3  # the middle of each group is not 0
    return layer.to_quantized(group, bits)


def exact(layer: Any, x: mx.array) -> Any:
    """Return what a layer gives, in 64 bits."""
    weights = mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)
    found = np.asarray(x, np.float64) @ np.asarray(weights.astype(mx.float32), np.float64).T
    return found + np.asarray(layer.bias.astype(mx.float32)) if "bias" in layer else found


@on_a_linux_cpu
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (8, 1), (3, 7)])
def test_a_layer_gives_what_its_weights_say(bits: int, group: int, shape: tuple[int, int]) -> None:
    # More rows of weights than one block holds, and not a multiple of it.
    layer = quantised(bits, group, 192, BLOCK // 192 * 2 + 5)
    use_numpy(layer)
    x = mx.random.normal((*shape, 192))
    found = layer(x)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.asarray(found), exact(layer, x), atol=2e-4)


@on_a_linux_cpu
def test_it_is_as_exact_as_mlx() -> None:
    layer = quantised(4, 32, 576, 300)
    x = mx.random.normal((4, 576))
    wanted = exact(layer, x)
    before = np.abs(np.asarray(layer(x)) - wanted).max()
    use_numpy(layer)
    assert np.abs(np.asarray(layer(x)) - wanted).max() <= 2 * before


@on_a_linux_cpu
def test_narrow_numbers_stay_narrow() -> None:
    layer = quantised(4, 32, 64, 40)
    layer.set_dtype(mx.bfloat16)
    use_numpy(layer)
    x = mx.random.normal((3, 64)).astype(mx.bfloat16)
    found = layer(x)
    assert found.dtype == mx.bfloat16
    np.testing.assert_allclose(
        np.asarray(found.astype(mx.float32)), exact(layer, x.astype(mx.float32)), rtol=0.02, atol=0.3
    )


@on_a_linux_cpu
@pytest.mark.parametrize("weights", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("given", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_the_numbers_are_as_wide_as_those_of_mlx_however_many_rows(weights: mx.Dtype, given: mx.Dtype) -> None:
    layer = quantised(4, 32, 64, 8)
    layer.set_dtype(weights)
    wanted = layer(mx.ones((1, 64), given)).dtype
    use_numpy(layer)
    assert [layer(mx.ones((rows, 64), given)).dtype for rows in (1, 2, 40)] == [wanted] * 3


@on_a_linux_cpu
def test_products_leave_half_of_the_cores_to_others() -> None:
    paths = list((Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"))
    if not paths or "OPENBLAS_NUM_THREADS" in os.environ:
        pytest.skip("numpy multiplies as it likes")
    use_numpy(Model(None, "tied"))
    threads = ctypes.CDLL(str(paths[0])).scipy_openblas_get_num_threads64_()
    assert threads == max(1, len(os.sched_getaffinity(0)) // 2)


class Model(nn.Module):
    """Maps tokens to logits, without layers between its embedding and its head."""

    def __init__(self, head: Any, name: str) -> None:
        super().__init__()
        self.embed_tokens = nn.QuantizedEmbedding(96, 64, 32, 4)
        self._name = name
        if head is not None:
            self[name] = head

    def __call__(self, tokens: mx.array) -> Any:
        x = self.embed_tokens(tokens)
        return self[self._name](x) if self._name in self else self.embed_tokens.as_linear(x)


def is_computed(found: mx.array, place: Path) -> bool:
    """Tell whether MLX has nothing of a product left to compute."""
    mx.export_to_dot(str(place), found)
    return "QuantizedMatmul" not in place.read_text()


@on_a_linux_cpu
@pytest.mark.parametrize("name", ["tied", "lm_head", "embed_out"])
def test_the_logits_of_a_prompt_are_computed_only_where_somebody_reads_them(name: str, tmp_path: Path) -> None:
    model = Model(None if name == "tied" else quantised(4, 32, 64, 96), name)
    long = mx.arange(2 * (MOST_READ + 1)).reshape(2, -1)
    wanted = np.asarray(model(long))
    use_numpy(model)
    prompt, guesses = model(long), model(long[:, :MOST_READ])
    assert not is_computed(prompt, tmp_path / "prompt.dot")
    assert is_computed(guesses, tmp_path / "guesses.dot")
    np.testing.assert_allclose(np.asarray(guesses), wanted[:, :MOST_READ], atol=2e-4)
    np.testing.assert_allclose(np.asarray(prompt), wanted, atol=2e-4)


@on_a_linux_cpu
@pytest.mark.parametrize(
    "make", [lambda: nn.QuantizedEmbedding(96, 64, 32, 4), lambda: nn.QuantizedEmbedding(96, 64, 64, 8)]
)
def test_an_embedding_reads_and_writes_with_the_same_weights(make: Callable[[], Any]) -> None:
    table = make()
    use_numpy(table)
    words = table(mx.array([3, 70]))
    np.testing.assert_allclose(np.asarray(table.as_linear(words)), exact(table, words), atol=2e-4)


@pytest.mark.parametrize("layer", [quantised(3, 32, 64, 8), nn.Linear(64, 8)], ids=["3 bits", "not quantised"])
def test_other_layers_stay_as_they_are(layer: Any) -> None:
    kind = type(layer)
    use_numpy(layer)
    assert type(layer) is kind


@on_a_linux_cpu
def test_layers_inside_a_model_are_found_and_keep_their_weights() -> None:
    model = nn.Sequential(quantised(4, 32, 64, 64), nn.ReLU(), quantised(8, 32, 64, 16, bias=False))
    x = mx.random.normal((5, 64))
    before, weights = np.asarray(model(x)), [each.weight for each in model.layers[::2]]
    use_numpy(model)
    assert [each.weight is weight for each, weight in zip(model.layers[::2], weights, strict=True)] == [True, True]
    np.testing.assert_allclose(np.asarray(model(x)), before, atol=2e-4)
    np.testing.assert_allclose(np.asarray(product(model.layers[2], x)), exact(model.layers[2], x), atol=2e-4)
