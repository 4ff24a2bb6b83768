"""Pure: whether the ranks of sharded groups can share their models, told at plan time with the model's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.expand import Desired
from orchestrator.observed import ModelFacts
from schemas.base import ModelName
from schemas.sharding import sharding_problems
from schemas.unit import GroupSpec, WorkerSpec

_TRIED_SIZES = range(1, 17)


def sharding_conflicts(desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> list[str]:
    """Return a sentence for every group whose model cannot be shared so; nothing for models that are not known yet."""
    found = []
    for unit in desired.units.values():
        spec = unit.spec
        if isinstance(spec, WorkerSpec) and spec.group is not None and spec.rank == 0 and spec.replica == 0:
            known = facts.get(spec.model.name)
            if known is not None:
                found += [f"services.{spec.service}.sharding: {problem}" for problem in group_problems(spec, known)]
    return found


def group_problems(spec: WorkerSpec, facts: ModelFacts) -> list[str]:
    """Return why a group's model cannot be shared as it asks, with the model's name and what would work.

    Also right for a model whose files have just arrived.
    """
    if spec.group is None:
        return []
    config = _config(facts)
    problems = _problems(config, spec.group, spec.group.size)
    if not problems:
        return []
    able = [size for size in _TRIED_SIZES if not _problems(config, spec.group, size)]
    way_out = f"; it can run on {_either(able)}" if able else ""
    return [f"{spec.model.name}: {', '.join(problems)}{way_out}"]


def _problems(config: Mapping[str, Any], group: GroupSpec, size: int) -> list[str]:
    split = group.split if size == group.size else None
    return sharding_problems(config, group.strategy, group.backend, size, split)


def _config(facts: ModelFacts) -> dict[str, Any]:
    """Return the part of `config.json` that is asked for, from what is known of it."""
    config = {
        "model_type": facts.architecture,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "hidden_size": facts.hidden,
        "intermediate_size": facts.intermediate,
    }
    return {key: value for key, value in config.items() if value is not None}


def _either(sizes: list[int]) -> str:
    words = [str(size) for size in sizes]
    ranks = "rank" if sizes == [1] else "ranks"
    return f"{words[0]} {ranks}" if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]} {ranks}"
