"""Pure: the operations of the OpenAI API, and the reranking that goes with it."""

from __future__ import annotations

from runtime.gateway.openapi import openai, ranking, responses
from runtime.gateway.openapi.operations import EVENTS, Answer, Operation, Parameter, relayed

TAG = "OpenAI"
_HELLO = [{"role": "user", "content": "Say hello."}]


def _rerank(path: str, summary: str) -> Operation:
    example = {
        "model": "reranking",
        "query": "Where is Paris?",
        "documents": ["Paris is in France.", "The sea is deep."],
    }
    answer = Answer("The documents, best first.", ranking.Ranking, is_relayed=True)
    return relayed(path, summary, ranking.RerankRequest, answer, tag="Reranking", example=example)


def _kept(method: str) -> Operation:
    name = Parameter("name", "path", {"type": "string", "minLength": 1}, "A response, and what is wanted of it.")
    summary = "Refused with 404: no response is kept"
    return Operation(method, "/v1/responses/<name:path>", summary, {}, tag=TAG, parameters=(name,), errors=("404",))


OPERATIONS = (
    relayed(
        "/v1/chat/completions",
        "Answer a conversation",
        openai.ChatRequest,
        Answer(
            "The answer: one document, or one event for every few letters.",
            openai.ChatCompletion,
            EVENTS,
            openai.ChatCompletionChunk,
            has_mark=True,
            is_relayed=True,
        ),
        tag=TAG,
        example={"model": "chat", "messages": _HELLO},
    ),
    relayed(
        "/v1/completions",
        "Go on with a text",
        openai.CompletionRequest,
        Answer(
            "The continuation: one document, or one event for every few letters.",
            openai.Completion,
            EVENTS,
            openai.Completion,
            has_mark=True,
            is_relayed=True,
        ),
        tag=TAG,
        example={"model": "chat", "prompt": "Once upon a time"},
    ),
    relayed(
        "/v1/responses",
        "Make a response",
        responses.ResponsesRequest,
        Answer(
            "The response: one document, or typed events with numbers.",
            responses.Response,
            EVENTS,
            responses.ResponseEvent,
            is_relayed=True,
        ),
        tag=TAG,
        example={"model": "chat", "input": "Say hello."},
    ),
    *(_kept(method) for method in ("GET", "POST", "DELETE")),
    relayed(
        "/v1/embeddings",
        "Make vectors of texts",
        openai.EmbeddingsRequest,
        Answer("The vectors.", openai.Embeddings, is_relayed=True),
        tag=TAG,
        example={"model": "embedding", "input": ["Paris", "London"]},
    ),
    _rerank("/v1/rerank", "Order documents by how well they answer a query"),
    _rerank("/v2/rerank", "The same, where Cohere's clients look for it"),
    _rerank("/rerank", "The same, where Jina's and TEI's clients look for it"),
    Operation(
        "GET",
        "/v1/models",
        "List the names that may be sent as `model`",
        {"200": Answer("Those that this key may use.", openai.ModelList)},
        tag=TAG,
    ),
    Operation(
        "GET",
        "/v1/models/<name:path>",
        "Tell what a name stands for",
        {"200": Answer("What it stands for.", openai.ModelCard)},
        tag=TAG,
        parameters=(
            Parameter("name", "path", {"type": "string", "minLength": 1}, "Its slashes may be encoded or not."),
        ),
        errors=("404",),
    ),
)
