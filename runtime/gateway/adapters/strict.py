"""Pure: endpoints that are asked in words of their own: because others would break them, mean something else there, or
be more than they take at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from runtime.gateway.adapters import infinity, mlx_lm_server, ollama, splitting, tei
from runtime.gateway.adapters.abilities import abilities_of
from runtime.gateway.adapters.emulation.gathering import rewritten
from runtime.gateway.adapters.emulation.plan import planned
from runtime.gateway.adapters.vectors import VectorReading
from runtime.gateway.attempt import Ask, Parts
from runtime.gateway.facts.known import UNKNOWN, Facts
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


def is_strict(engine: str, max_batch: int | None = None, drop_params: tuple[str, ...] = ()) -> bool:
    """Tell whether all requests to an endpoint must go through `adapt`; others only where they have demands."""
    return engine in _ADAPTERS or max_batch is not None or bool(drop_params)


def max_batch_of(engine: str, declared: int | None) -> int | None:
    """Return how many texts an engine takes in one request; None where nobody says."""
    return _MAX_BATCH.get(engine) if declared is None else declared


def adapt(ask: Ask, target: Target, facts: Facts = UNKNOWN) -> Ask:
    """Return the request as an endpoint may have it; raises `ApiError` with status 400 for what cannot be done.

    `facts` are what its server has said.
    """
    if ask.steps is not None:
        # Its steps know the engine.
        return ask
    engine = target.identity.engine
    made = _ADAPTERS.get(engine, _plain)
    named = replace(ask, body=replace(ask.body, model=target.upstream_model))
    spared = _spared(named, target.drop_params)
    if ask.reading is None:
        able = abilities_of(engine, facts.source)
        eyes, tools = facts.is_able("vision"), facts.is_able("tools")
        adapted = planned(spared, able, make=made, has_eyes=eyes, has_tools=tools)
        # What is passed on as it came still names the model that the client knows.
        return ask if adapted is named else adapted
    parts = [spared]
    if target.max_batch is not None:
        parts = splitting.split(spared, target.max_batch, _LARGEST_BODY.get(engine, _ANY_SIZE))
    if len(parts) == 1:
        adapted = made(spared)
        return ask if adapted is named else adapted
    joined = Parts(tuple(made(part) for part in parts), partial(splitting.join, spared, parts))
    return replace(ask, parts=joined, dropped=spared.dropped)


def _spared(ask: Ask, names: tuple[str, ...]) -> Ask:
    """Return a request without the parameters that its endpoint is spared."""
    dropped = tuple(name for name in names if ask.body.document.get(name) is not None)
    if not dropped:
        return ask
    kept = {name: value for name, value in ask.body.document.items() if name not in dropped}
    lean = replace(rewritten(ask, kept), dropped=dropped, is_usage_kept=ask.wants_usage)
    if "dimensions" in dropped and isinstance(ask.reading, VectorReading):
        # Vectors are as long as they are, where the files say nothing.
        return replace(lean, reading=replace(ask.reading, dimensions=ask.route.dimensions))
    return lean


def _plain(ask: Ask) -> Ask:
    """Return a request in OpenAI's words, written anew where it is a part of another one."""
    if ask.body.raw:
        return ask
    document = {**ask.body.document, "model": ask.body.model}
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, body=replace(ask.body, raw=raw, document=document))
