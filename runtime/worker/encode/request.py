"""Pure: a JSON object becomes a request for vectors or for a ranking, or a refusal that names the parameter."""

import math
from dataclasses import dataclass
from typing import Any

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields, valid_text
from runtime.worker.request import check_model

MAX_INPUTS = 2048
"""Texts or documents in one request: OpenAI's limit."""
MAX_DIMENSIONS = 1 << 16
MAX_INSTRUCTION = 4096
"""Characters of an instruction."""

Input = str | tuple[int, ...]
"""A text, or tokens of the model's own tokenizer."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A valid request for vectors."""

    inputs: tuple[Input, ...]
    names: tuple[str, ...]
    """The field of each input, for messages."""
    is_base64: bool
    dimensions: int | None
    """None for vectors as long as the model makes them."""
    truncate: bool
    """Cut what is too long; otherwise it is refused."""
    prompt_name: str | None
    """Which of the model's prompts to put in front of the texts; none takes its default."""


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A valid request for a ranking."""

    query: str
    documents: tuple[str, ...]
    originals: tuple[Any, ...]
    """The documents as they came, to be returned."""
    names: tuple[str, ...]
    """The field of each document, for messages."""
    top_n: int
    returns_documents: bool
    truncate: bool
    """Cut what is too long, as the models' own code does; otherwise it is refused."""
    instruction: str | None


def parse_embedding(body: dict[str, Any], model: str) -> EmbeddingRequest:
    """Parse the body of `/v1/embeddings` for a worker that serves `model`.

    Raises RequestError.
    """
    fields = Fields(body)
    check_model(fields, model)
    inputs, names = _inputs(fields.get("input"))
    encoding = fields.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64.", param="encoding_format")
    return EmbeddingRequest(
        inputs=inputs,
        names=names,
        is_base64=encoding == "base64",
        dimensions=fields.integer("dimensions", 1, MAX_DIMENSIONS),
        truncate=fields.boolean("truncate"),
        prompt_name=_text(fields, "prompt_name", MAX_INSTRUCTION),
    )


def parse_rerank(body: dict[str, Any], model: str) -> RerankRequest:
    """Parse the body of `/v1/rerank` for a worker that serves `model`: the shape of Jina and Cohere.

    Raises RequestError.
    """
    fields = Fields(body)
    check_model(fields, model)
    query = fields.get("query")
    if not isinstance(query, str) or not query:
        raise RequestError("query must be a nonempty string.", param="query")
    originals = fields.get("documents")
    if not isinstance(originals, list) or not originals:
        raise RequestError("documents must be a nonempty list.", param="documents")
    if len(originals) > MAX_INPUTS:
        raise RequestError(f"documents may hold at most {MAX_INPUTS}.", param="documents")
    names = tuple(f"documents[{index}]" for index in range(len(originals)))
    returns_documents = fields.boolean("return_documents")
    if returns_documents and not _is_finite(originals):
        raise RequestError("documents hold a number that is too large to be returned.", param="documents")
    top_n = fields.integer("top_n", 1, 1 << 31)
    return RerankRequest(
        query=valid_text(query, "query"),
        documents=tuple(_document(each, name) for each, name in zip(originals, names, strict=True)),
        originals=tuple(originals),
        names=names,
        top_n=min(top_n or len(originals), len(originals)),
        returns_documents=returns_documents,
        truncate=True if fields.get("truncate") is None else fields.boolean("truncate"),
        instruction=_text(fields, "instruction", MAX_INSTRUCTION),
    )


def _inputs(value: object) -> tuple[tuple[Input, ...], tuple[str, ...]]:
    """Return the inputs and their names: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return (_input(value, "input"),), ("input",)
    if not isinstance(value, list) or not value:
        message = "input must be a nonempty string, a nonempty list of them, token ids, or a list of lists of these."
        raise RequestError(message, param="input")
    if type(value[0]) is int:
        return (_input(value, "input"),), ("input",)
    if len(value) > MAX_INPUTS:
        raise RequestError(f"input may hold at most {MAX_INPUTS} texts.", param="input")
    names = tuple(f"input[{index}]" for index in range(len(value)))
    inputs = tuple(_input(each, name) for each, name in zip(value, names, strict=True))
    if len({type(each) for each in inputs}) > 1:
        raise RequestError("input must hold either texts or lists of token ids, not both.", param="input")
    return inputs, names


def _input(value: object, name: str) -> Input:
    if isinstance(value, str) and value:
        return valid_text(value, name)
    if isinstance(value, list) and value and all(type(token) is int and token >= 0 for token in value):
        return tuple(value)
    raise RequestError(f"{name} must be a nonempty string or a nonempty list of token ids.", param=name)


def _document(value: object, name: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string or an object with a `text`.", param=name)
    return valid_text(text, name)


def _is_finite(value: object) -> bool:
    """Tell whether a part of a body has no number like 1e400, which Python reads as an infinity."""
    match value:
        case float():
            return math.isfinite(value)
        case list():
            return all(map(_is_finite, value))
        case dict():
            return all(map(_is_finite, value.values()))
    return True


def _text(fields: Fields, name: str, longest: int) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > longest:
        raise RequestError(f"{name} must be a string of at most {longest} characters.", param=name)
    return valid_text(value, name)
