"""Every family of encoders against sentence-transformers and transformers themselves, on the same tiny checkpoints."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.embeddings import PLACE
from tests.runtime.worker.encode_asking import ranking
from tests.runtime.worker.test_encoder import (
    FAMILIES,
    POOLINGS,
    QUERY,
    TEXTS,
    USUAL_INSTRUCTION,
    open_model,
    vectors_of,
    yes_no_prompt,
)  # fmt: skip
from tests.runtime.worker.tiny_encoders import WIDTH, Checkpoint, add_modules, write_bert, write_modernbert, write_qwen3

PROGRAM = Path(__file__).with_name("torch_reference.py")
RUN_S = 600.0
PADS = {"bert": "[PAD]", "xlm-roberta": "<pad>", "modernbert": "[PAD]", "qwen3": "<|endoftext|>"}
CROSS_ENCODERS: dict[str, Callable[[Path], Checkpoint]] = {
    "bert": lambda directory: write_bert(directory, head=True),
    "xlm-roberta": lambda directory: write_bert(directory, head=True, roberta=True),
    "modernbert": lambda directory: write_modernbert(directory, head=True),
}


@dataclass
class Comparison:
    """What the other program is asked, and what the worker's encoders gave."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    ours: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, ours: np.ndarray, do: str, checkpoint: Checkpoint, **task: Any) -> None:
        complete(checkpoint)
        self.tasks.append({"do": do, "directory": str(checkpoint.directory), **task})
        self.ours[name] = ours

    def run(self) -> dict[str, float]:
        """Return the largest difference of each."""
        done = subprocess.run(
            [PLACE / "bin" / "python", PROGRAM],
            input=json.dumps(self.tasks), text=True, capture_output=True, timeout=RUN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        theirs = dict(zip(self.ours, json.loads(done.stdout), strict=True))
        return {name: float(np.abs(ours - np.array(theirs[name])).max()) for name, ours in self.ours.items()}


def complete(checkpoint: Checkpoint) -> None:
    """Add what published checkpoints say besides, and these libraries want to read."""
    config, directory = checkpoint.config, checkpoint.directory
    is_bert, is_roberta = (config["model_type"] == name for name in ("bert", "xlm-roberta"))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PADS[config["model_type"]],
        "model_max_length": config["max_position_embeddings"] - (2 if is_roberta else 0),
        "model_input_names": ["input_ids", *(["token_type_ids"] if is_bert else []), "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    pooling = directory / "1_Pooling" / "config.json"
    if pooling.exists():
        pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": WIDTH}))


def scores_of(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """Return the score of each text, in the order of the texts."""
    results = ranking(open_model(checkpoint, "reranking"), QUERY, texts)
    return np.array([score for _, score in sorted((one["index"], one["relevance_score"]) for one in results)])


@pytest.mark.slow
@pytest.mark.skipif(not (PLACE / "ready").exists(), reason="`make bench` brings torch and sentence-transformers (1 GB)")
def test_vectors_and_scores_are_those_of_the_libraries_that_the_models_are_published_for(tmp_path: Path) -> None:
    comparison = Comparison()
    for family, write in FAMILIES.items():
        own = ["lasttoken" if family == "qwen3" else "mean_tokens"]
        for mode in POOLINGS if family == "bert" else own:
            checkpoint = write(tmp_path / f"{family}-{mode}")
            add_modules(checkpoint.directory, mode)
            ours = vectors_of(open_model(checkpoint), TEXTS)
            comparison.add(f"{family} {mode}", ours, "vectors", checkpoint, texts=TEXTS)
    for family, write in CROSS_ENCODERS.items():
        checkpoint = write(tmp_path / f"cross-{family}")
        ours = scores_of(checkpoint, TEXTS)
        comparison.add(f"{family} cross-encoder", ours, "scores", checkpoint, query=QUERY, texts=TEXTS)
    checkpoint = write_qwen3(tmp_path / "yes-no", "yes-no")
    prompts = [yes_no_prompt(USUAL_INSTRUCTION, text) for text in TEXTS]
    comparison.add("qwen3 reranker", scores_of(checkpoint, TEXTS), "yes", checkpoint, prompts=prompts)
    assert {name: gap for name, gap in comparison.run().items() if gap > 2e-5} == {}
