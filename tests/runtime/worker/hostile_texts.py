"""Pure: bodies that end, hang or fool servers of embeddings and rankings; see `hostile` for what the lists promise."""

import json
from typing import Any

from tests.runtime.worker.bodies import DEEP
from tests.runtime.worker.hostile import HUGE, Case

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"


def _embed(name: str, param: str | None, **fields: Any) -> Case:
    return Case(name, EMBEDDINGS, {"input": "a", **fields}, param)


def _rank(name: str, param: str | None, **fields: Any) -> Case:
    return Case(name, RERANK, {"query": "a", "documents": ["a", "b"], **fields}, param)


def _raw(path: str, name: str, param: str | None, fields: bytes) -> Case:
    given = b'{"input": "a", ' if path == EMBEDDINGS else b'{"query": "a", "documents": ["a"], '
    return Case(name, path, given + fields + b"}", param)


REFUSED = [
    _embed("no input", "input", input=None),
    _embed("empty text", "input", input=""),
    _embed("no texts", "input", input=[]),
    _embed("an empty text among others", "input", input=["a", "", "b"]),
    _embed("empty lists", "input", input=[[]]),
    _embed("number", "input", input=5),
    _embed("object", "input", input={"text": "a"}),
    _embed("texts and tokens", "input", input=["a", [1]]),
    _embed("tokens and texts", "input", input=[1, "a"]),
    _embed("truth as token", "input", input=[[True]]),
    _embed("fraction as token", "input", input=[[1.5]]),
    _embed("negative token", "input", input=[[-1]]),
    _embed("token beyond the vocabulary", "input", input=[1 << 31]),
    _embed("token beyond every integer", "input", input=[[HUGE]]),
    _embed("deep lists", "input", input=[[[[1]]]]),
    _embed("half a character", "input", input=["a\ud800"]),
    _embed("too many texts", "input", input=["a"] * 100_000),
    _embed("too long text", "input", input="the quick brown fox " * 100_000),
    _embed("too many tokens", "input", input=[1] * 500_000),
    _embed("dimensions 0", "dimensions", dimensions=0),
    _embed("dimensions 1e9", "dimensions", dimensions=10**9),
    _embed("dimensions as fraction", "dimensions", dimensions=1.5),
    _embed("dimensions as truth", "dimensions", dimensions=True),
    _embed("dimensions that the model was not made for", "dimensions", dimensions=3),
    _embed("unknown encoding", "encoding_format", encoding_format="binary"),
    _embed("encoding as list", "encoding_format", encoding_format=["float"]),
    _embed("truncate as text", "truncate", truncate="END"),
    _embed("unknown prompt", "prompt_name", prompt_name="nothing"),
    _embed("prompt as number", "prompt_name", prompt_name=1),
    _embed("model of a hub", "model", model="someone/anything"),
    _embed("adapters", "adapters", adapters="../../etc"),
    _raw(EMBEDDINGS, "dimensions 1e400", "dimensions", b'"dimensions": 1e400'),
    _raw(EMBEDDINGS, "dimensions NaN", None, b'"dimensions": NaN'),
    _raw(EMBEDDINGS, "deep bytes", None, b'"more": ' + DEEP),
    _rank("no query", "query", query=None),
    _rank("empty query", "query", query=""),
    _rank("query as list", "query", query=["a"]),
    _rank("half a character as query", "query", query="\udfff"),
    _rank("no documents", "documents", documents=None),
    _rank("none of them", "documents", documents=[]),
    _rank("one document as text", "documents", documents="a"),
    _rank("numbers as documents", "documents", documents=[1, 2]),
    _rank("null among documents", "documents", documents=["a", None]),
    _rank("objects without text", "documents", documents=[{"title": "a"}]),
    _rank("objects of a number", "documents", documents=[{"text": 5}]),
    _rank("half a character", "documents", documents=["a", "\ud83d"]),
    _rank("too many documents", "documents", documents=["a"] * 100_000),
    _rank("top_n 0", "top_n", top_n=0),
    _rank("top_n beyond every integer", "top_n", top_n=HUGE),
    _rank("top_n as text", "top_n", top_n="1"),
    _rank("return_documents as number", "return_documents", return_documents=1),
    _rank("model as number", "model", model=5),
    _raw(
        RERANK,
        "1e400 in a document to return",
        "documents",
        b'"return_documents": true, "documents": [{"text": "a", "more": [{"n": 1e400}]}]',
    ),
    _raw(RERANK, "top_n 1e400", "top_n", b'"top_n": 1e400'),
    _raw(RERANK, "top_n of 5000 digits", None, b'"top_n": ' + b"9" * 5000),
]

SURVIVED = [
    _embed("control characters", None, input=["\x00", "\x1b[2J", "\u2028\ufeff\U0010ffff", " ", "\n"]),
    _embed("markers", None, input="[CLS] [SEP] [PAD] [MASK] <|end|> </s>"),
    _embed("one text a thousand times", None, input=["a"] * 1000),
    _embed("texts of every length", None, input=["a " * length for length in range(1, 60)]),
    _embed("too long text that may be cut", None, input="the quick brown fox " * 100_000, truncate=True),
    _rank("empty documents", None, documents=["", " ", "\x00"]),
    _rank("long documents", None, documents=["the quick brown fox " * 50_000, "a"]),
    _rank("a long query", None, query="the quick brown fox " * 50_000),
    _rank("half a character beside a text", None, return_documents=True, documents=[{"text": "b", "title": "\ud800"}]),
    _rank("half a character as a key", None, return_documents=True, documents=[{"text": "b", "\udfff": 1}]),
    _rank("more wanted than there are", None, top_n=(1 << 31) - 1),
    _rank("objects with more than text", None, documents=[{"text": "a", "more": json.dumps({"a": [1] * 100})}]),
]
