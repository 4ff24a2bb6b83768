"""What a model's files say of it before it is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime.worker.card import read_card
from runtime.worker.described import Described, FileCard, chat_abilities, kind_abilities, row_of

CONFIG = {"model_type": "llama", "max_position_embeddings": 2048}
PACKED = {"quantization": {"group_size": 32, "bits": 4, "embed": {"group_size": 32, "bits": 8}}}


def tensor(dtype: str, *shape: int, size: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}


def weights(path: Path, tensors: dict[str, Any], **metadata: str) -> None:
    head = json.dumps({"__metadata__": metadata, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)


def model(directory: Path, config: dict[str, Any], tensors: dict[str, Any] | None = None, **metadata: str) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        weights(directory / "model.safetensors", tensors, **metadata)
    return directory


def test_packed_weights_are_counted_as_what_they_stand_for(tmp_path: Path) -> None:
    tensors = {
        "embed.weight": tensor("U32", 10, 8, size=320),
        "embed.scales": tensor("F16", 10, 1, size=20),
        "embed.biases": tensor("F16", 10, 1, size=20),
        "layer.weight": tensor("U32", 10, 4, size=160),
        "layer.scales": tensor("F16", 10, 1, size=20),
        "layer.biases": tensor("F16", 10, 1, size=20),
        "norm.weight": tensor("F16", 32, size=64),
        "positions": tensor("I64", 99, size=792),
    }
    card = read_card(model(tmp_path, CONFIG | PACKED, tensors, format="mlx"), "chat", 1024)
    assert card == FileCard("llama", 2048, 1024, 10 * 32 + 10 * 32 + 32, "4bit", "mlx", 1416)


def test_plain_weights_are_named_by_their_type(tmp_path: Path) -> None:
    tensors = {"a.weight": tensor("BF16", 4, 4, size=32), "a.bias": tensor("F32", 4, size=16)}
    card = read_card(model(tmp_path, CONFIG, tensors, format="pt"), "embedding")
    assert card == FileCard("llama", None, None, 20, "bf16", "safetensors", 48)


@pytest.mark.parametrize(("quantization", "named"), [({"mode": "mxfp4", "bits": 4}, "mxfp4"), ({"bits": 6}, "6bit")])
def test_other_packings_have_names_of_their_own(tmp_path: Path, quantization: Any, named: str) -> None:
    assert read_card(model(tmp_path, CONFIG | {"quantization": quantization}, {})).quantisation == named


def test_of_a_model_whose_files_are_on_several_machines_the_index_tells(tmp_path: Path) -> None:
    directory = model(tmp_path, CONFIG)
    weights(directory / "one.safetensors", {"a.weight": tensor("F16", 2, size=4)})
    index = {
        "metadata": {"total_size": 500, "total_parameters": 250},
        "weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    card = read_card(directory)
    assert (card.parameters, card.size_bytes, card.format) == (250, 500, None)
    weights(directory / "two.safetensors", {"b.weight": tensor("F16", 3, size=6)})
    assert (read_card(directory).parameters, read_card(directory).size_bytes) == (5, 10)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x09\0\0\0\0\0\0\0no json.."])
def test_damaged_files_say_nothing_and_break_nothing(tmp_path: Path, content: bytes) -> None:
    directory = model(tmp_path, CONFIG)
    (directory / "model.safetensors").write_bytes(content)
    assert read_card(directory).architecture == "llama"
    assert read_card(directory).parameters is None
    (directory / "config.json").write_bytes(content)
    assert read_card(directory) in (FileCard(), FileCard(format="safetensors", size_bytes=0))
    assert read_card(tmp_path / "nowhere") == FileCard()


@pytest.mark.parametrize("named", [{"a": 1, "b": []}, {"a": None, "b": "one.safetensors"}, [], "x", {"a": "\0"}])
def test_an_index_that_names_no_files_breaks_nothing(tmp_path: Path, named: Any) -> None:
    directory = model(tmp_path, CONFIG)
    weights(directory / "one.safetensors", {"a.weight": tensor("F16", 2, size=4)})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": 3, "weight_map": named}))
    assert read_card(directory).architecture == "llama"


def test_files_that_are_made_to_hurt_say_nothing_and_break_nothing(tmp_path: Path) -> None:
    deep = "[" * 200_000
    directory = model(tmp_path, CONFIG, {"a.weight": tensor("F16", 10**400)})
    assert read_card(directory) == FileCard("llama", 2048, 2048)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep.encode())
    assert read_card(directory) == FileCard("llama", 2048, 2048)
    (directory / "model.safetensors.index.json").write_text(deep)
    assert read_card(directory) == FileCard("llama", 2048, 2048)
    (directory / "config.json").write_text(deep)
    assert read_card(directory) == FileCard()


def test_what_a_model_can_is_told_once_it_was_loaded() -> None:
    card = FileCard("llama", 2048, 1024, 10, "4bit", "mlx", 5)
    cold = row_of("m", 1, card, None, is_loaded=False, memory_bytes=9, expires_at=3.0)
    assert (cold.context_length, cold.capabilities, cold.lacks) == (1024, (), ())
    assert (cold.loaded, cold.memory_bytes, cold.expires_at) == (False, None, None)
    can = chat_abilities(has_template=True, has_thinking=False)
    warm = row_of("m", 1, card, Described(1024, can), is_loaded=True, memory_bytes=9, expires_at=3.0)
    assert warm.capabilities == ("completion", "tools", "json_schema", "logprobs")
    assert warm.lacks == ("vision", "audio", "thinking", "insert", "embedding", "rerank")
    assert (warm.memory_bytes, warm.expires_at) == (9, 3.0)
    assert "tools" not in chat_abilities(has_template=False, has_thinking=True)
    assert kind_abilities("reranking") == {"rerank"}
