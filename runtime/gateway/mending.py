"""Pure: what some engines say otherwise in every answer than OpenAI's clients expect it, set right on the way.

Bytes of engines that are known to do right pass as they come. An answer names its model as the endpoint knows it
(OpenAI's does so too: a client that asks for an alias is told which model answered).
"""

from __future__ import annotations

import json
import re
from typing import Protocol

from runtime.gateway.adapters import mlx_lm_server
from runtime.gateway.routing.table import Target

_PUNCTUAL = frozenset({"mlx", "worker", "vllm"})
"""Engines that name one time for the whole of an answer."""
_CREATED = re.compile(rb'(?<!\\)("created"\s*:\s*)(\d+)')


class Mending(Protocol):
    """Sets one answer right. Used for one answer."""

    def __call__(self, data: bytes, /) -> bytes:
        """Return whole events, or the whole answer, as clients expect them."""
        ...


def mending_of(target: Target) -> Mending | None:
    """Return what has to be done to an answer of an endpoint; None for nothing."""
    match target.identity.engine:
        case mlx_lm_server.ENGINE:
            return _OwnModel(target.upstream_model, target.identity.model)
        case engine if engine in _PUNCTUAL:
            return None
        case _:
            return _OneTime()


class _OneTime:
    """An answer was created once. Ollama (`openai/openai.go`, ToChunk) and llama.cpp stamp every chunk anew."""

    __slots__ = ("_key", "_said", "_time")

    def __init__(self) -> None:
        self._said = self._key = self._time = b""

    def __call__(self, data: bytes) -> bytes:
        # Once an event: two counts are a quarter of a substitution, which few events need.
        if self._said:
            if data.count(self._said) == data.count(self._key):
                return data
        else:
            found = _CREATED.search(data)
            if found is None:
                return data
            self._said, self._key, self._time = found[0], found[1], found[2]
        return _CREATED.sub(lambda match: match[1] + self._time, data)


class _OwnModel:
    """`mlx_lm.server` answers with the name that it was asked by, which the gateway made up, and calls its last chunk a
    whole completion (mlx-lm 0.32 `server.py`, completion_usage_response)."""

    __slots__ = ("_asked", "_model")

    def __init__(self, asked: str, model: str) -> None:
        self._asked = b'"model": ' + json.dumps(asked).encode()
        self._model = b'"model": ' + json.dumps(model).encode()

    def __call__(self, data: bytes) -> bytes:
        data = data.replace(self._asked, self._model)
        if data.startswith(b"data:") and b'"choices": []' in data:
            return data.replace(b'"object": "chat.completion",', b'"object": "chat.completion.chunk",')
        return data
