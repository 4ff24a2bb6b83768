"""How layers are given out, and which models can be spread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import exits
from schemas.sharding import Backend, Strategy, sharding_problems, split_layers

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
}


@pytest.mark.parametrize(
    ("shares", "layers", "counts"),
    [
        ((12, 10, 8), 30, (12, 10, 8)),
        ((1, 1, 1), 30, (10, 10, 10)),
        ((1, 1, 1), 10, (4, 3, 3)),
        ((1, 1, 1), 11, (4, 4, 3)),
        ((3, 2), 7, (4, 3)),
        ((12, 10, 8), 6, (2, 2, 2)),
        ((100, 1, 1), 10, (8, 1, 1)),
        ((1, 1, 98), 4, (1, 1, 2)),
        ((1, 1000, 1, 1), 4, (1, 1, 1, 1)),
        ((512, 128), 80, (64, 16)),
        ((7,), 3, (3,)),
    ],
)
def test_layers_are_given_in_proportion(shares: tuple[int, ...], layers: int, counts: tuple[int, ...]) -> None:
    assert split_layers(shares, layers) == counts


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=16), st.integers(0, 200))
def test_every_layer_is_given_once_and_every_rank_has_one(shares: list[int], more: int) -> None:
    layers = len(shares) + more
    counts = split_layers(shares, layers)
    assert sum(counts) == layers
    assert min(counts) >= 1
    for first, larger in zip(shares, counts, strict=True):
        for second, smaller in zip(shares, counts, strict=True):
            assert not (first < second and larger > smaller), "a larger share never gives fewer layers"


def test_fewer_layers_than_ranks_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 layers"):
        split_layers((1, 1, 1), 2)


@pytest.mark.parametrize(
    ("change", "strategy", "backend", "size", "split", "words"),
    [
        ({}, "tensor", "ring", 3, None, []),
        ({}, "tensor", "jaccl", 2, None, ["num_attention_heads 9 does not divide by 2", "num_key_value_heads 3"]),
        ({"intermediate_size": 1537}, "tensor", "ring", 3, None, ["intermediate_size 1537 does not divide by 3 ranks"]),
        ({"model_type": "gemma3"}, "tensor", "ring", 3, None, ["mlx-lm has no tensor sharding for model_type gemma3"]),
        ({}, "pipeline", "ring", 3, None, ["model_type llama; strategy: tensor can be used"]),
        ({"model_type": "qwen3_next"}, "tensor", "ring", 3, None, ["strategy: pipeline can be used"]),
        ({"model_type": "qwen2"}, "pipeline", "ring", 2, (12, 18), []),
        ({"model_type": "qwen2"}, "pipeline", "nccl", 2, None, ["nccl carries no pipeline"]),
        ({"model_type": "qwen2"}, "pipeline", "ring", 31, None, ["num_hidden_layers 30 is less than 31 ranks"]),
        ({"model_type": "qwen2"}, "pipeline", "ring", 3, (1, 2), ["split has 2 shares for 3 ranks"]),
        ({"quantization": {"group_size": 64, "bits": 4}}, "tensor", "ring", 3, None, []),
        (
            {"quantization": {"group_size": 1024, "bits": 4}},
            "tensor", "ring", 3, None,
            ["intermediate_size 1536 over 3 ranks leaves 512, not whole quantisation groups of 1024"],
        ),
        ({"model_type": None}, "tensor", "ring", 3, None, ["config.json names no model_type"]),
        (
            {"model_type": "qwen3_5", "text_config": {"num_attention_heads": 10}},
            "tensor", "ring", 3, None,
            ["num_attention_heads 10 does not divide by 3 ranks"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_is_said_with_its_numbers(
    change: dict[str, object],
    strategy: Strategy,
    backend: Backend,
    size: int,
    split: tuple[int, ...] | None,
    words: list[str],
) -> None:
    problems = sharding_problems({**LLAMA, **change}, strategy, backend, size, split)
    assert len(problems) == len(words)
    for problem, expected in zip(problems, words, strict=True):
        assert expected in problem


def test_every_code_of_a_group_has_words() -> None:
    codes = [value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int) and value >= 70]
    assert len(codes) == len(set(codes)) == 9
    assert all(exits.exit_words(code) for code in codes)
    assert exits.exit_words(exits.LOAD_STUCK) == "its model did not load in time"
    assert exits.exit_words(1) is None
    assert "collectives" in (exits.signal_words("SIGALRM") or "")
    assert exits.signal_words("SIGKILL") is None
