"""Pure: a request becomes rows to compute, and what was computed becomes the JSON of its answer.

Shapes: OpenAI's embeddings, and the rankings of Jina and Cohere.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.worker.encode.prompts import ListwisePrompt, YesNoPrompt
from runtime.worker.encode.recipe import Recipe
from runtime.worker.encode.request import EmbeddingRequest, RerankRequest
from runtime.worker.encode.rows import Row, Texts
from runtime.worker.errors import RequestError

Vector = npt.NDArray[np.float32]
"""One vector; a score is a vector of one, and a row with marks gives one vector for each."""

_CUT = ',"truncated":true'


@dataclass(frozen=True, slots=True)
class Reading:
    """What a loaded model needs to be asked."""

    recipe: Recipe
    texts: Texts
    prompt: YesNoPrompt | ListwisePrompt | None
    """What a decoder reranker is asked with."""
    dimensions: int | None
    """Length of the vectors; none for a model that gives scores."""


@dataclass(frozen=True, slots=True)
class Work:
    """One request, ready to be computed."""

    rows: Sequence[Row]
    finish: Callable[[Sequence[Vector]], bytes]
    """Takes what the rows gave, in their order, and returns the answer's body."""


def embedding_work(request: EmbeddingRequest, reading: Reading, model: str) -> Work:
    """Prepare a request for vectors; raises RequestError."""
    length = _length(request.dimensions, reading)
    prompt = _prompt(request.prompt_name, reading.recipe)
    texts = [prompt + each for each in request.inputs if isinstance(each, str)]
    if texts:
        rows = reading.texts.rows(texts, request.names, truncate=request.truncate)
    else:
        rows = [
            reading.texts.given(each, name, truncate=request.truncate)
            for each, name in zip(request.inputs, request.names, strict=True)
            if not isinstance(each, str)
        ]

    def finish(vectors: Sequence[Vector]) -> bytes:
        if length < (reading.dimensions or 0):
            vectors = [vector[:length] for vector in vectors]
            if reading.recipe.is_normalised:
                vectors = [_unit(vector) for vector in vectors]
        write = _base64 if request.is_base64 else _floats
        entries = (
            f'{{"object":"embedding","index":{index},"embedding":{write(vector)}{_CUT if any(row.cut) else ""}}}'
            for index, (vector, row) in enumerate(zip(vectors, rows, strict=True))
        )
        tail = json.dumps({"model": model, "usage": _usage(rows)}, ensure_ascii=False)
        return f'{{"object":"list","data":[{",".join(entries)}],{tail[1:]}'.encode()

    return Work(rows, finish)


def rerank_work(request: RerankRequest, reading: Reading, model: str) -> Work:
    """Prepare a request for a ranking; raises RequestError."""
    prompt = reading.prompt
    if request.instruction and prompt is None:
        raise RequestError("This model takes no instruction.", param="instruction")
    if prompt is not None:
        rows = prompt.rows(
            request.query, request.documents, request.instruction, request.names, truncate=request.truncate
        )
    elif reading.recipe.method == "classifier":
        rows = reading.texts.pairs(request.query, request.documents, request.names, truncate=request.truncate)
    else:
        before = reading.recipe.document_prompt()
        rows = reading.texts.rows(
            [reading.recipe.query_prompt() + request.query, *(before + document for document in request.documents)],
            ["query", *request.names],
            truncate=request.truncate,
        )
    method = reading.recipe.method
    cut = [is_cut for row in (rows[1:] if method == "vector" else rows) for is_cut in row.cut]

    def finish(answers: Sequence[Vector]) -> bytes:
        if method == "listwise":
            scores = listwise_scores(answers)
        elif method == "vector":
            scores = _cosines(answers[0], np.stack(answers[1:]))
        else:
            scores = [float(answer[0]) for answer in answers]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        results = [_result(request, index, scores[index], is_cut=cut[index]) for index in order[: request.top_n]]
        body = {"object": "list", "model": model, "results": results, "usage": _usage(rows)}
        # Escaped: a document's other fields come back as they came, also where they hold half a character.
        return json.dumps(body, separators=(",", ":")).encode()

    return Work(rows, finish)


def listwise_scores(blocks: Sequence[Vector]) -> list[float]:
    """Score the documents of all blocks against the mean of the queries' vectors.

    Each block holds its documents' vectors and the query's as the last one. A block weighs as much as its best
    document is near the query: jina-reranker-v3's own rule for lists that need several prompts.
    """
    weights = [(1 + max(_cosines(block[-1], block[:-1]))) / 2 for block in blocks]
    if not sum(weights):
        weights = [1.0] * len(blocks)
    query = np.average(np.stack([block[-1] for block in blocks]), axis=0, weights=weights)
    return [score for block in blocks for score in _cosines(query, block[:-1])]


def _length(wanted: int | None, reading: Reading) -> int:
    """Return how long the vectors will be; raises RequestError for a length that the model was not trained for."""
    whole = reading.dimensions or 0
    if wanted is None or wanted == whole:
        return whole
    cuts = reading.recipe.cuts
    if cuts is None:
        message = f"This model's vectors have {whole} dimensions and lose their meaning when they are cut."
        raise RequestError(message, param="dimensions")
    if wanted > whole or not cuts.allow(wanted):
        known = ", ".join(map(str, sorted(cuts.listed))) if cuts.listed else f"{cuts.least} to {whole}"
        raise RequestError(f"dimensions must be one of: {known}.", param="dimensions")
    return wanted


def _prompt(name: str | None, recipe: Recipe) -> str:
    if name is None:
        return recipe.prompts[recipe.default_prompt] if recipe.default_prompt else ""
    if name not in recipe.prompts:
        known = ", ".join(recipe.prompts) or "none"
        raise RequestError(f"This model has no prompt {name!r}; it has: {known}.", param="prompt_name")
    return recipe.prompts[name]


def _result(request: RerankRequest, index: int, score: float, *, is_cut: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if request.returns_documents:
        original = request.originals[index]
        result["document"] = {"text": original} if isinstance(original, str) else original
    return result | ({"truncated": True} if is_cut else {})


def _usage(rows: Sequence[Row]) -> dict[str, int]:
    tokens = sum(len(row.tokens) for row in rows)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _cosines(query: Vector, documents: Vector) -> list[float]:
    lengths = np.maximum(np.linalg.norm(documents, axis=1) * np.linalg.norm(query), 1e-12)
    return [float(score) for score in documents @ query / lengths]


def _unit(vector: Vector) -> Vector:
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))


def _floats(vector: Vector) -> str:
    # Nine digits bring every 32-bit number back; Python would write the 17 of a 64-bit one.
    return f"[{','.join(np.char.mod('%.9g', vector))}]"


def _base64(vector: Vector) -> str:
    return f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")}"'
