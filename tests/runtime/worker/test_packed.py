"""BERT by numpy, rows packed and shared among threads, against the same weights by MLX's layers."""

import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from runtime.worker.encode import packed, shares
from runtime.worker.encode.bert import Bert
from runtime.worker.encode.encoder import load
from runtime.worker.encode.packed import PackedBert
from tests.runtime.worker.tiny_encoders import write_bert

BATCHES = {
    "one text": [9],
    "one token": [1],
    "a long text": [60],
    "texts of one length": [12] * 5,
    "few texts": [40, 3, 40],
    "many texts": [3, 17, 8, 8, 60, 1, 33, 17, 5, 5, 5, 2, 48, 9, 31, 30, 12],
}
needs_numpy = pytest.mark.skipif("sys.platform != 'linux'", reason="numpy computes where MLX uses a Linux CPU")


def network_types(network: Bert | PackedBert) -> int:
    """Return how many kinds of text a model tells apart."""
    return (network if isinstance(network, Bert) else network.backbone).shape.types


def states(network: Bert | PackedBert, lengths: list[int]) -> list[np.ndarray]:
    """Return the hidden states of rows of so many random tokens, without those of padding."""
    dice = np.random.default_rng(sum(lengths))
    shape = len(lengths), max(lengths)
    tokens, types = dice.integers(3, 30, shape), np.zeros(shape, int)
    types[:, shape[1] // 2 :] = network_types(network) - 1
    found = network(mx.array(tokens), mx.array(types), mx.array(lengths))
    return [row[:length] for row, length in zip(np.array(found), lengths, strict=True)]


@pytest.fixture(params=["bert", "xlm-roberta"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Bert:
    write_bert(tmp_path, roberta=request.param == "xlm-roberta")
    found = load(tmp_path, "embedding", None, lambda _: None).network.module.backbone
    assert isinstance(found, Bert)
    return found


@needs_numpy
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("threads", [1, 3])
def test_packed_rows_give_what_mlx_gives(
    backbone: Bert, lengths: list[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "cores", lambda: threads)
    monkeypatch.setattr(packed, "CHUNK", 7)
    monkeypatch.setattr(packed, "LEAST_SHARE", 4)
    for expected, found in zip(states(backbone, lengths), states(PackedBert(backbone), lengths), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@needs_numpy
def test_attention_of_long_rows_is_computed_in_parts(backbone: Bert, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = BATCHES["many texts"]
    whole = states(PackedBert(backbone), lengths)
    monkeypatch.setattr(packed, "SCORES", 50)
    for expected, found in zip(whole, states(PackedBert(backbone), lengths), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@needs_numpy
def test_an_encoder_on_a_linux_cpu_is_packed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    assert isinstance(load(tmp_path, "embedding", None, lambda _: None).network.states, PackedBert)


def test_every_thing_is_in_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    done = np.zeros(101, int)

    def work(begin: int, end: int) -> None:
        done[begin:end] += 1

    shares.share(work, 101, 10, threads=4)
    assert (done == 1).all()


def test_a_failure_is_told_when_all_shares_are_over() -> None:
    is_over = threading.Event()

    def fail() -> None:
        raise FloatingPointError("no number")

    with pytest.raises(FloatingPointError, match="no number"):
        shares.together([fail, is_over.set])
    assert is_over.is_set()
