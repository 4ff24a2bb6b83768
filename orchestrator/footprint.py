"""Pure: how much memory one unit needs: its model or its share of it, its prompt cache and its draft model."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.observed import ModelFacts
from schemas.base import ModelName
from schemas.model import Model
from schemas.unit import AnyUnitSpec, EngineSpec, ModelSpec, WorkerSpec

GIB = 1 << 30
OVERHEAD_SHARE = 0.2
"""Of the weights, for buffers and caches, where nothing better is known."""
PROCESS_GIB = 0.25
"""The interpreter and its libraries (measured: 0.2 GiB with mlx on Linux)."""
CACHED_TOKENS = 4096
"""Tokens for which keys and values are counted, for each place of the batch."""
TEXT_TOKENS = 512
"""Tokens of a text to embed or rank for which memory is counted, for each place of the batch."""
BATCH_TOKENS = 16_384
"""Tokens of texts that a worker computes at once at most, however many its batch holds."""


def needed_memory(
    spec: AnyUnitSpec, models: Mapping[ModelName, Model], facts: Mapping[ModelName, ModelFacts]
) -> tuple[float | None, bool]:
    """Return what a unit needs in GiB, None where nothing says it of its model, and whether that is an estimate.

    That is what `unit_memory` says of its model, and on top of it `prompt_cache_gib` where the stack sets it and what
    the draft model needs: its own `memory_gib`, else its weights and what one request takes. A draft model of which
    nothing is known yet counts for nothing, which makes an estimate of the sum.
    """
    if not isinstance(spec, WorkerSpec | EngineSpec):
        return None, False
    own, is_estimate = unit_memory(spec, _declared(spec.model, models), facts.get(spec.model.name))
    if own is None or not isinstance(spec, WorkerSpec):
        return own, is_estimate
    total = own + (spec.prompt_cache_gib or 0.0)
    if spec.draft is None:
        return total, is_estimate
    declared = _declared(spec.draft, models)
    if declared is not None:
        return total + declared, is_estimate
    return total + _draft_gib(spec.draft, facts.get(spec.draft.name)), True


def unit_memory(spec: AnyUnitSpec, declared: float | None, facts: ModelFacts | None) -> tuple[float | None, bool]:
    """Return what a unit needs for its model in GiB, None where nothing says it, and whether that is an estimate.

    Declared: the model's `memory_gib`. Else, from the model's files: the weights, plus the larger of a fifth of them
    and the keys and values (two bytes a number) of `max_batch` requests with 4,096 tokens each, of encoders what one
    layer makes of `max_batch` texts. A rank has its share of it. Every process has 0.25 GiB on top of an estimate.
    """
    if not isinstance(spec, WorkerSpec | EngineSpec):
        return None, False
    if declared is not None:
        return declared * share_of(spec), False
    if facts is None or facts.weights_bytes is None:
        return None, False
    if spec.model.kind == "chat":
        working = _cache_bytes(spec.model, facts, spec.max_batch)
    else:
        working = _layer_bytes(spec.model, facts, spec.max_batch)
    extra = max(facts.weights_bytes * OVERHEAD_SHARE, working)
    return (facts.weights_bytes + extra) / GIB * share_of(spec) + PROCESS_GIB, True


def share_of(spec: WorkerSpec | EngineSpec) -> float:
    """Return which part of its model a unit holds: by `split` in a pipeline, else an equal one."""
    if isinstance(spec, EngineSpec) or spec.group is None:
        return 1.0
    group = spec.group
    if group.split is not None and len(group.split) == group.size:
        return group.split[spec.rank] / sum(group.split)
    return 1.0 / group.size


def _declared(model: ModelSpec, models: Mapping[ModelName, Model]) -> float | None:
    return models[model.name].memory_gib if model.name in models else None


def _draft_gib(model: ModelSpec, facts: ModelFacts | None) -> float:
    """Return what a draft model takes in the process of its service, by its files: it proposes to one request."""
    if facts is None or facts.weights_bytes is None:
        return 0.0
    extra = max(facts.weights_bytes * OVERHEAD_SHARE, _cache_bytes(model, facts, 1))
    return (facts.weights_bytes + extra) / GIB


def _cache_bytes(model: ModelSpec, facts: ModelFacts, requests: int) -> float:
    heads = facts.heads
    if facts.layers is None or heads is None or facts.hidden is None:
        return 0.0
    width = facts.hidden / heads * (facts.kv_heads or heads)
    limits = [limit for limit in (model.context, facts.context, CACHED_TOKENS) if limit is not None]
    return 2 * 2 * facts.layers * width * min(limits) * requests


def _layer_bytes(model: ModelSpec, facts: ModelFacts, texts: int) -> float:
    """Return what one layer makes of a batch of texts, in four bytes a number: nothing is kept from token to token."""
    if facts.heads is None or facts.hidden is None:
        return 0.0
    limits = [limit for limit in (model.context, facts.context, TEXT_TOKENS) if limit is not None]
    tokens = min(limits)
    texts = max(1, min(texts, BATCH_TOKENS // tokens))
    rows = 4 * facts.hidden + 2 * (facts.intermediate or 4 * facts.hidden)
    return 4.0 * texts * tokens * (rows + facts.heads * tokens)
