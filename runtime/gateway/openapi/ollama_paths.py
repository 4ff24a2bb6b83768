"""Pure: the operations of Ollama's API, and of the root, where its clients look whether somebody lives."""

from __future__ import annotations

from dataclasses import replace

from runtime.gateway.openapi import ollama
from runtime.gateway.openapi.operations import LINES, PAGE, PLAIN, Answer, Operation, Parameter, relayed

TAG = "Ollama"
_MANAGED = "Refused: models are managed by the stack files."
_DIGEST = Parameter("digest", "path", {"type": "string", "minLength": 1})


def _get(path: str, summary: str, answer: Answer) -> Operation:
    return Operation("GET", path, summary, {"200": answer}, tag=TAG)


def _managed(method: str, path: str) -> Operation:
    return Operation(method, path, _MANAGED, {}, tag=TAG, parameters=(_DIGEST,) if "<digest" in path else ())


_ROOT = _get(
    "/", "Tell that somebody lives", Answer("`Ollama is running`, or a page for browsers.", texts=(PLAIN, PAGE))
)
_VERSION = _get("/api/version", "Tell the version of the API", Answer("The version.", ollama.Version))
_TAGS = _get("/api/tags", "List the names that may be sent as `model`", Answer("Those of this key.", ollama.Tags))

OPERATIONS = (
    relayed(
        "/api/chat",
        "Answer a conversation",
        ollama.OllamaChatRequest,
        Answer(
            "The answer, in lines unless `stream` is false.", ollama.ChatLine, LINES, ollama.ChatLine, is_relayed=True
        ),
        tag=TAG,
        example={"model": "chat", "messages": [{"role": "user", "content": "Say hello."}], "stream": False},
    ),
    relayed(
        "/api/generate",
        "Answer a prompt",
        ollama.OllamaGenerateRequest,
        Answer(
            "The answer, in lines unless `stream` is false.",
            ollama.GenerateLine,
            LINES,
            ollama.GenerateLine,
            is_relayed=True,
        ),
        tag=TAG,
        example={"model": "chat", "prompt": "Say hello.", "stream": False},
    ),
    relayed(
        "/api/embed",
        "Make vectors of texts",
        ollama.OllamaEmbedRequest,
        Answer("The vectors.", ollama.EmbedAnswer, is_relayed=True),
        tag=TAG,
        example={"model": "embedding", "input": ["Paris", "London"]},
    ),
    relayed(
        "/api/embeddings",
        "Make the vector of a text",
        ollama.OllamaEmbeddingsRequest,
        Answer("The vector.", ollama.EmbeddingsAnswer, is_relayed=True),
        tag=TAG,
        example={"model": "embedding", "prompt": "Paris"},
    ),
    Operation(
        "POST",
        "/api/show",
        "Tell what is known of a model",
        {"200": Answer("What is known.", ollama.Shown)},
        tag=TAG,
        body=ollama.OllamaShowRequest,
        example={"model": "chat"},
        errors=("404",),
    ),
    _get("/api/ps", "List the models in memory", Answer("The models.", ollama.Processes)),
    *(each for known in (_TAGS, _VERSION, _ROOT) for each in (known, replace(known, method="HEAD"))),
    _managed("POST", "/api/pull"),
    _managed("POST", "/api/push"),
    _managed("POST", "/api/create"),
    _managed("POST", "/api/copy"),
    _managed("DELETE", "/api/delete"),
    _managed("POST", "/api/blobs/<digest:str>"),
    _managed("HEAD", "/api/blobs/<digest:str>"),
)
