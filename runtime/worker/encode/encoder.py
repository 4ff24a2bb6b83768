"""I/O: load an embedding or reranking model from its directory, and compute rows of tokens with it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from runtime.worker.encode.files import ends_texts, has_projector, load_tokenizer, read_files
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.networks import Network, open_encoder
from runtime.worker.encode.prompts import ListwisePrompt, YesNoPrompt
from runtime.worker.encode.recipe import read_recipe
from runtime.worker.encode.rows import Row, Texts
from runtime.worker.encode.work import Reading, Vector
from runtime.worker.errors import RequestError
from runtime.worker.model import materialise
from schemas.model import ModelKind

logger = logging.getLogger(__name__)

GRAIN = 8
"""Rows are padded to a multiple of this: MLX's kernels like it, and buffers of few sizes are used again."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model in memory, and how to speak to it."""

    reading: Reading
    network: Network
    size_bytes: int

    @property
    def max_length(self) -> int:
        """Return how many tokens one row may have."""
        return self.reading.recipe.max_length

    @property
    def dimensions(self) -> int | None:
        """Return the length of the vectors; none for a model that gives scores."""
        return self.reading.dimensions

    def compute(self, rows: Sequence[Row]) -> list[Vector]:
        """Compute rows together; return a vector, a score as a vector of one, or one vector for each mark of a row.

        Rows with marks are computed one by one. Runs on the thread that owns MLX; raises what MLX raises.
        """
        if rows[0].marks:
            return [self._compute([row], list(row.marks)) for row in rows]
        return list(self._compute(rows, [len(row.tokens) for row in rows]))

    def probe(self) -> Row:
        """Return a row that proves, once computed, that the model works; raises ModelFilesError where none fits."""
        if self.reading.prompt is None:
            return self.reading.texts.rows(["a"], ["probe"], truncate=True)[0]
        try:
            return self.reading.prompt.rows("a", ["a"], None, ["probe"], truncate=True)[0]
        except RequestError as error:
            message = f"{self.max_length} tokens leave no room for the model's prompt: raise --max-context"
            raise ModelFilesError(message) from error

    def _compute(self, rows: Sequence[Row], places: list[int]) -> Vector:
        longest = max(len(row.tokens) for row in rows)
        count = min(-(-longest // GRAIN) * GRAIN, self.max_length)
        tokens = np.zeros((len(rows), count), np.int32)
        types = np.zeros_like(tokens)
        for index, row in enumerate(rows):
            tokens[index, : len(row.tokens)] = row.tokens
            if row.second:
                types[index, row.second : len(row.tokens)] = 1
        lengths = mx.array([len(row.tokens) for row in rows])
        hidden = self.network.states(mx.array(tokens), mx.array(types), lengths)
        try:
            return np.array(self.network.answers(hidden, mx.array(places)), np.float32)
        finally:
            # Every mix of lengths has buffers of its own size: kept for reuse they were 24 GB after 320 texts.
            del hidden
            mx.clear_cache()


def load(directory: Path, kind: ModelKind, max_context: int | None, progress: Callable[[float], None]) -> Encoder:
    """Load weights and tokenizer from a local directory to be served as `kind`.

    `max_context` lowers the length that the model's files name. `progress` receives the share of the weights that are
    in memory. Raises ModelFilesError, and what MLX raises; the caller cannot go on without a model.
    """
    try:
        return _load(directory, kind, max_context, progress)
    except ModelFilesError as error:
        raise ModelFilesError(f"{directory}: {error}") from error


def _load(directory: Path, kind: ModelKind, max_context: int | None, progress: Callable[[float], None]) -> Encoder:
    files = read_files(directory)
    tokenizer = load_tokenizer(directory)
    recipe = read_recipe(files, kind, ends_texts=ends_texts(tokenizer), has_projector=has_projector(directory))
    for guess in recipe.guesses:
        logger.warning("%s: %s", directory, guess)
    recipe = replace(recipe, max_length=min(recipe.max_length, max_context or recipe.max_length))
    config: dict[str, Any] = files["config.json"]
    texts = Texts(tokenizer, recipe.max_length, int(config["vocab_size"]), is_lowercased=recipe.is_lowercased)
    prompt: YesNoPrompt | ListwisePrompt | None = None
    if recipe.method == "yes-no":
        prompt = YesNoPrompt(texts)
    elif recipe.method == "listwise":
        prompt = ListwisePrompt(texts)
    if recipe.family == "decoder":
        # Encoders do without mlx-lm, which takes seconds to import.
        from runtime.worker.encode.decoder import open_decoder

        answers = (prompt.yes, prompt.no) if isinstance(prompt, YesNoPrompt) else None
        network = open_decoder(directory, recipe, answers)
    else:
        network = open_encoder(directory, config, recipe)
    size_bytes = materialise(network.module, progress)
    return Encoder(Reading(recipe, texts, prompt, network.dimensions), network, size_bytes)
