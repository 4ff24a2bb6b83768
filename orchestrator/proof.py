"""Pure: what shows that a model makes vectors or ranks documents: the smallest request, and what must come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.model import ModelKind

QUERY = "What is the capital of France?"
DOCUMENTS = ("Bread is baked in an oven.", "Paris is the capital of France.", "The sea is deep.")
"""Every working reranker puts the second one first; that it does is shown, not required."""
PATHS: Mapping[ModelKind, str] = {"embedding": "/v1/embeddings", "reranking": "/v1/rerank"}


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of the request."""

    vector: tuple[float, ...] = ()
    """Of an embedding model."""
    ranked: tuple[tuple[int, float], ...] = ()
    """Of a reranker: document numbers and scores, best first."""
    fault: str = ""
    """Why it shows nothing; empty where it does."""


def proof_body(kind: ModelKind, model: str) -> dict[str, Any]:
    """Return the request that shows it; chat models are asked for tokens elsewhere."""
    if kind == "embedding":
        return {"model": model, "input": QUERY, "encoding_format": "float"}
    return {"model": model, "query": QUERY, "documents": list(DOCUMENTS)}


def proof_of(kind: ModelKind, answer: Any) -> Proof:
    """Judge the JSON document that came back. Never raises."""
    try:
        if kind == "embedding":
            (item,) = answer["data"]
            vector = tuple(float(number) for number in item["embedding"])
            return Proof(vector) if vector and all(map(math.isfinite, vector)) else Proof(fault="its vector is empty")
        ranked = [(int(result["index"]), float(result["relevance_score"])) for result in answer["results"]]
        if {index for index, _ in ranked} != set(range(len(DOCUMENTS))) or not all(math.isfinite(s) for _, s in ranked):
            return Proof(fault="it did not score every document")
        return Proof(ranked=tuple(sorted(ranked, key=lambda pair: -pair[1])))
    except (KeyError, TypeError, ValueError, IndexError):
        shape = "a list of vectors" if kind == "embedding" else "a list of results"
        return Proof(fault=f"it did not answer with {shape}")
