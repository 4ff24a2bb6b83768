"""Pure: what clients ask of embedding models, and what the answers must be before anybody sees them.

An answer can be tens of megabytes of numbers. It is checked where it lies: how many vectors there are, how long each
is, in which order. Only one that is out of order, or in the other of the two forms, is taken apart.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack, unpack
from typing import Any

from runtime.gateway.attempt import NO_HEADERS, BadAnswerError, WrongDimensionError
from runtime.gateway.bodies import Body, body_of, invalid, is_tokens, read_document
from runtime.gateway.errors import ApiError
from runtime.gateway.usage import prompt_tokens

PATH = "/v1/embeddings"
MOST_TEXTS = 2048
"""In a request: as many as OpenAI's takes. An endpoint may get each of them in a request of its own."""

_VECTOR = re.compile(rb'"embedding"\s*:\s*')
_INDEX = re.compile(rb'"index"\s*:\s*(\d+)')
_LIST = re.compile(rb"\s*(\[[0-9eE+.,\s-]*\])\s*([,\]])")
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_TOKENS = re.compile(rb'"(prompt_tokens|total_tokens)"\s*:\s*(\d{1,15})')
_EDGE = 512
"""Bytes at the end of an answer in which its usage stands; most engines write it there."""
_ESTIMATED = b',"estimated":true'
_BYTES = 4
"""Of one number: base64 carries float32, little end first."""


def parse_embeddings(raw: bytes) -> Body:
    """Check the body of a request for embeddings; raises `ApiError` with status 400."""
    document = read_document(raw)
    if not _count(document.get("input")):
        raise invalid("input", "must be a text, a list of texts, or tokens, and not empty")
    if document.get("messages") is not None:
        # vLLM takes a conversation in place of `input`, and fetches what its parts point to.
        raise invalid("messages", "cannot be embedded: send 'input'")
    if document.get("encoding_format") not in (None, "float", "base64"):
        raise invalid("encoding_format", "must be 'float' or 'base64'")
    dimensions = document.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise invalid("dimensions", "must be a whole number of at least 1")
    body = body_of(raw, document)
    if body.is_stream:
        raise invalid("stream", "cannot be asked for: embeddings come as a whole")
    return body


@dataclass(frozen=True, slots=True)
class VectorReading:
    """What the answer to one request has to be."""

    count: int
    """How many texts were sent."""
    dimensions: int | None
    """The length that every vector must have; None where any will do, if it is the same for all."""
    is_base64: bool
    """The client wants base64, which endpoints may not know."""
    asked: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The request, for endpoints that do not say how many tokens it was."""

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        """Return the answer for the client; raises `BadAnswerError` or `WrongDimensionError`."""
        if not raw.rstrip().endswith(b"}"):
            raise BadAnswerError("it is cut off")
        places = [match.end() for match in _VECTOR.finditer(raw)]
        if len(places) != self.count:
            raise BadAnswerError(f"{len(places)} vectors for {self.count} texts")
        lengths = {_length(raw, place) for place in places}
        if len(lengths) > 1:
            raise BadAnswerError("vectors of different lengths")
        (length,) = lengths
        if self.dimensions is not None and length != self.dimensions:
            raise WrongDimensionError(f"vectors of {length} numbers, {self.dimensions} are wanted")
        are_base64 = {raw[place : place + 1] == b'"' for place in places} == {True}
        order = [int(match[1]) for match in _INDEX.finditer(raw)]
        if are_base64 != self.is_base64 or order != list(range(self.count)):
            raw = self._rewritten(raw)
        return self._counted(raw)

    def _counted(self, raw: bytes) -> bytes:
        """Return an answer with a usage: one that says nothing of its tokens, or zero, gets an estimate."""
        if any(int(number) for _, number in _TOKENS.findall(raw[-_EDGE:])):
            return raw
        document, items, vectors = _taken_apart(raw)
        said = document.get("usage")
        given = said.get("prompt_tokens") if isinstance(said, dict) else None
        if type(given) is int and given > 0:
            return raw
        tokens = prompt_tokens(self.asked)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "estimated": True}
        return _put_together({**document, "usage": usage}, items, vectors)

    def _rewritten(self, raw: bytes) -> bytes:
        document, items, vectors = _taken_apart(raw)
        order = [item.get("index", place) for place, item in enumerate(items)]
        if any(type(index) is not int for index in order) or sorted(order) != list(range(self.count)):
            raise BadAnswerError("its vectors are not numbered from 0 on")
        ordered: list[dict[str, Any]] = [{} for _ in order]
        forms = [b"" for _ in order]
        for index, item, vector in zip(order, items, vectors, strict=True):
            ordered[index] = {**item, "index": index}
            forms[index] = self._form(vector)
        return _put_together(document, ordered, forms)

    def _form(self, vector: bytes) -> bytes:
        """Return the text of a vector in the form that the client wants."""
        is_base64 = vector.startswith(b'"')
        if is_base64 == self.is_base64:
            return vector
        try:
            if self.is_base64:
                numbers = json.loads(vector)
                return b'"%b"' % b64encode(pack(f"<{len(numbers)}f", *numbers))
            raw = b64decode(vector[1:-1], validate=True)
            return json.dumps(unpack(f"<{len(raw) // _BYTES}f", raw), separators=(",", ":")).encode()
        except Exception as error:
            kind = "base64" if is_base64 else "list"
            raise BadAnswerError(f"a vector that is no {kind} of numbers") from error


def reading_of(body: Body, dimensions: int | None) -> VectorReading:
    """Return what the answer to a request must be; `dimensions` is what the stack's files pin.

    Raises `ApiError` with status 400 where the request asks for another length, or is of too many texts.
    """
    asked = body.document.get("dimensions")
    if dimensions is not None and asked is not None and asked != dimensions:
        message = f"'dimensions' is {asked}, and the vectors of '{body.model}' have {dimensions} numbers."
        raise ApiError(400, message, code="invalid_value", param="dimensions")
    is_base64 = body.document.get("encoding_format") == "base64"
    given = body.document["input"]
    # Where some of its texts are empty, which only Ollama's clients may send, each is one text nevertheless.
    count = 1 if isinstance(given, str) or type(given[0]) is int else len(given)
    if count > MOST_TEXTS:
        raise invalid("input", f"has {count} texts; a request may have {MOST_TEXTS}")
    return VectorReading(count, dimensions or asked, is_base64, body.document)


def _taken_apart(raw: bytes) -> tuple[dict[str, Any], list[dict[str, Any]], list[bytes]]:
    """Return an answer without its vectors, what it says of each of them, and their texts; raises `BadAnswerError`.

    The numbers are never parsed together: the interpreter does nothing else meanwhile, for seconds where there are
    millions of them, and streams of other clients would wait, whichever thread does it.
    """
    pieces: list[bytes] = []
    vectors: list[bytes] = []
    end = 0
    for match in _VECTOR.finditer(raw):
        vectors.append(_text_at(raw, match.end()))
        pieces += (raw[end : match.end()], b"%d" % (len(vectors) - 1))
        end = match.end() + len(vectors[-1])
    try:
        document = json.loads(b"".join((*pieces, raw[end:])))
        items = document["data"]
        places = [item.pop("embedding") for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswerError("no list of vectors") from error
    if places != list(range(len(vectors))):
        raise BadAnswerError("no list of vectors")
    return document, items, vectors


def _put_together(document: Mapping[str, Any], items: Sequence[Mapping[str, Any]], vectors: Sequence[bytes]) -> bytes:
    """Return the text of an answer; `items` says what is told of each vector."""
    told = (_inside({**item, "object": "embedding"}) for item in items)
    data = b",".join(b'{%b,"embedding":%b}' % (each, vector) for each, vector in zip(told, vectors, strict=True))
    rest = {key: value for key, value in document.items() if key not in ("object", "data")}
    end = b"," + _inside(rest) if rest else b""
    return b'{"object":"list","data":[%b]%b}' % (data, end)


def _inside(document: Mapping[str, Any]) -> bytes:
    """Return the text of an object that is not empty, without its brackets."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")[1:-1]


def listed(raw: bytes, place: int) -> list[bytes]:
    """Return the texts of the lists in the list that begins at a place; raises `BadAnswerError` where none does."""
    found: list[bytes] = []
    if raw[place : place + 1] != b"[":
        raise BadAnswerError("no list of vectors")
    place, end = place + 1, b","
    while end == b",":
        match = _LIST.match(raw, place)
        if match is None:
            raise BadAnswerError("no list of vectors")
        found.append(match[1])
        place, end = match.end(), match[2]
    return found


def written(vectors: Sequence[bytes], model: str, tokens: int) -> bytes:
    """Write an answer in OpenAI's shape; each vector is the text of a JSON value."""
    return _written(vectors, json.dumps(model).encode(), tokens, tokens)


def joined(answers: Sequence[bytes]) -> bytes:
    """Return one answer of several that were read, in their order; what they took is summed."""
    vectors = [_text_at(raw, match.end()) for raw in answers for match in _VECTOR.finditer(raw)]
    tokens = {b"prompt_tokens": 0, b"total_tokens": 0}
    for raw in answers:
        # What follows or precedes the vectors; in between there are only numbers.
        for name, number in dict(_TOKENS.findall(raw)).items():
            tokens[name] += int(number)
    model = _MODEL.search(answers[0])
    is_estimated = any(_ESTIMATED in raw[-_EDGE:] for raw in answers)
    end = _ESTIMATED if is_estimated else b""
    return _written(vectors, model[1] if model else b'""', tokens[b"prompt_tokens"], tokens[b"total_tokens"], end)


def _written(vectors: Sequence[bytes], model: bytes, prompt: int, total: int, end: bytes = b"") -> bytes:
    items = (
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector) for index, vector in enumerate(vectors)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d%b}' % (prompt, total, end)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(items), model, usage)


def _text_at(raw: bytes, place: int) -> bytes:
    """Return the text of the vector that begins at a place, in an answer that was read before."""
    closing = b"]" if raw[place : place + 1] == b"[" else b'"'
    return raw[place : raw.index(closing, place + 1) + 1]


def probe_body(model: str) -> Body:
    """Return the smallest request that shows that a model makes vectors."""
    document: Mapping[str, Any] = {"model": model, "input": "Are you there?"}
    return Body(json.dumps(document).encode(), document, model, is_stream=False)


def _count(value: object) -> int:
    """Return how many texts an input has; 0 for one that is none."""
    if isinstance(value, str):
        return int(value != "")
    if not isinstance(value, list) or not value:
        return 0
    if is_tokens(value):
        return 1
    are_texts = all(isinstance(part, str) and part for part in value)
    return len(value) if are_texts or all(isinstance(part, list) and part and is_tokens(part) for part in value) else 0


def _length(raw: bytes, place: int) -> int:
    """Return how many numbers the vector has that begins at a place; raises `BadAnswerError` where none does."""
    match raw[place : place + 1]:
        case b"[":
            end = raw.find(b"]", place)
            is_nested = raw.find(b"[", place + 1, end) >= 0
            # No number has an n in it, but null and NaN do.
            has_gaps = raw.find(b"n", place, end) >= 0 or raw.find(b"N", place, end) >= 0
            if end < 0 or is_nested or has_gaps or not raw[place + 1 : end].strip():
                raise BadAnswerError("a vector that is no list of numbers")
            return raw.count(b",", place, end) + 1
        case b'"':
            end = raw.find(b'"', place + 1)
            size = end - place - 1
            length, rest = divmod(size * 3 // 4 - raw.count(b"=", max(place, end - 2), max(place, end)), _BYTES)
            if end < 0 or size == 0 or size % 4 or rest:
                raise BadAnswerError("a vector that is no base64 of numbers")
            return length
        case _:
            raise BadAnswerError("a vector that is no list of numbers")
