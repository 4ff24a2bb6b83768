"""Pure: endpoints that are asked in words of their own: because others would break them, mean something else there, or
be more than they take at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from runtime.gateway.adapters import infinity, mlx_lm_server, ollama, splitting, tei
from runtime.gateway.attempt import Ask, Parts
from runtime.gateway.routing.table import Target

Adapt = Callable[[Ask], Ask]

_ADAPTERS: Mapping[str, Adapt] = {
    infinity.ENGINE: infinity.adapt,
    mlx_lm_server.ENGINE: mlx_lm_server.adapt_ask,
    ollama.ENGINE: ollama.adapt,
    tei.ENGINE: tei.adapt,
}
_MAX_BATCH: Mapping[str, int] = {infinity.ENGINE: infinity.MAX_BATCH, tei.ENGINE: tei.MAX_BATCH}
_LARGEST_BODY: Mapping[str, int] = {tei.ENGINE: tei.LARGEST_BODY}
_ANY_SIZE = 1 << 40


def is_strict(engine: str, max_batch: int | None = None) -> bool:
    """Tell whether requests to an endpoint must go through `adapt`."""
    return engine in _ADAPTERS or max_batch is not None


def max_batch_of(engine: str, declared: int | None) -> int | None:
    """Return how many texts an engine takes in one request; None where nobody says."""
    return _MAX_BATCH.get(engine) if declared is None else declared


def adapt(ask: Ask, target: Target) -> Ask:
    """Return the request as a strict endpoint may have it; raises `ApiError` with status 400 for what it cannot do."""
    engine = target.identity.engine
    made = _ADAPTERS.get(engine, _plain)
    named = replace(ask, body=replace(ask.body, model=target.upstream_model))
    parts = [named]
    if target.max_batch is not None:
        parts = splitting.split(named, target.max_batch, _LARGEST_BODY.get(engine, _ANY_SIZE))
    if len(parts) == 1:
        adapted = made(named)
        # What is passed on as it came still names the model that the client knows.
        return ask if adapted is named else adapted
    return replace(ask, parts=Parts(tuple(made(part) for part in parts), partial(splitting.join, ask, parts)))


def _plain(ask: Ask) -> Ask:
    """Return a request in OpenAI's words, written anew where it is a part of another one."""
    if ask.body.raw:
        return ask
    document = {**ask.body.document, "model": ask.body.model}
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, body=replace(ask.body, raw=raw, document=document))
