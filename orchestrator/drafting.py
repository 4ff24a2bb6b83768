"""Pure: draft models in plans: whether they go with the models that they propose tokens to."""

from __future__ import annotations

from orchestrator.expand import Desired
from orchestrator.observed import Observed
from schemas.unit import ModelSpec, WorkerSpec


def drafted_pairs(desired: Desired) -> frozenset[tuple[ModelSpec, ModelSpec]]:
    """Return the models that have a draft model, each with it."""
    specs = [unit.spec for unit in desired.units.values() if isinstance(unit.spec, WorkerSpec)]
    return frozenset((spec.model, spec.draft) for spec in specs if spec.draft is not None)


def draft_conflicts(desired: Desired, observed: Observed) -> list[str]:
    """Return a sentence for every service whose draft model is known to have another vocabulary."""
    specs = {unit.spec.service: unit.spec for unit in desired.units.values() if isinstance(unit.spec, WorkerSpec)}
    return [
        f"services.{service}.draft: expected a model with the vocabulary of {spec.model.name}, and the token {token!r} "
        f"of {spec.draft.name} is none of it, or has another number; name a smaller model of the same family"
        for service, spec in sorted(specs.items())
        if spec.draft is not None and (token := observed.foreign_tokens.get((spec.model.name, spec.draft.name)))
    ]
