"""Pure: the bodies of the reranking API, in Cohere's and Jina's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from runtime.gateway.openapi.shapes import Asked, Count, Described, ModelName, Text, Token


class TextDocument(Described):
    """A document that is more than its text."""

    text: str


class RerankRequest(Asked):
    """A request to order documents by how well they answer a query."""

    model: ModelName
    query: Text
    documents: Annotated[list[str | TextDocument], Field(min_length=1)]
    top_n: Count | None = None
    """How many results are wanted; all of them where it is not said."""
    return_documents: bool | None = None
    stream: Literal[False] | None = None


class RankedDocument(Described):
    """One document's place."""

    index: Token
    """Its place in the request, from 0 on."""
    relevance_score: float
    document: TextDocument | None = None
    ranked: Literal[False] | None = None
    """The documents were left in their order, because nobody could rank them."""


class Ranking(Described):
    """The documents, best first."""

    results: list[RankedDocument]
