"""Pure: whether models can do what roles ask of them, and under which licences, told at plan time from their files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from orchestrator.expand import Desired
from orchestrator.ladders import RoleShape
from orchestrator.observed import ModelFacts
from schemas.base import HelperName, ModelName, RoleName, ServiceName
from schemas.sharding import UNBATCHED_MODELS
from schemas.unit import EngineSpec, ModelSpec, WorkerSpec

NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial|research", re.IGNORECASE)
"""What the names of licences without commercial use have in them, such as `cc-by-nc-4.0`."""


def dimension_conflicts(desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> list[str]:
    """Return a sentence for every model whose own files say another vector length than its role pins."""
    models = _models_of_services(desired)
    found = []
    for name, role in sorted(desired.roles.items()):
        for service in _services_of(role):
            known = facts.get(models[service].name) if service in models else None
            length = None if known is None else known.dimensions
            if None not in (role.dimensions, length) and length != role.dimensions:
                found.append(
                    f"roles.{name}.dimensions: expected the {length} of {models[service].name} (service {service}), "
                    f"found {role.dimensions}; vectors of two lengths cannot be compared"
                )
    return found


def batch_conflicts(desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> list[str]:
    """Return a sentence for every worker's model, or draft model, that is known to be of a family it cannot serve."""
    named = {
        (spec.service, key): (model.name, key == "model" and spec.group is None)
        for unit in desired.units.values()
        if isinstance(spec := unit.spec, WorkerSpec)
        for key, model in (("model", spec.model), ("draft", spec.draft))
        if model is not None and model.name in facts and facts[model.name].architecture in UNBATCHED_MODELS
    }
    return [
        f"services.{service}.{key}: expected a model that mlx-lm computes in batches, found {model} of the family "
        f"{facts[model].architecture}, whose caches serve one request at a time; name a model of another family"
        + (", or serve it with engine: mlx-lm-server" if is_served_alone else "")
        for (service, key), (model, is_served_alone) in sorted(named.items())
    ]


def pinned_dimensions(desired: Desired, service: ServiceName) -> Mapping[RoleName, int]:
    """Return the vector lengths that roles expect of a service, by role."""
    roles = sorted(desired.roles.items())
    return {name: role.dimensions for name, role in roles if role.dimensions and service in _services_of(role)}


def kind_notes(desired: Desired, facts: Mapping[ModelName, ModelFacts]) -> Iterator[str]:
    """Yield what a user should know before anything runs: licences, and helpers that cannot do a role's task."""
    for model in sorted({spec.name for spec in _models_of_services(desired).values()}):
        licence = facts[model].licence if model in facts else None
        if licence is not None and NON_COMMERCIAL.search(licence):
            yield f"{model}: its licence, {licence}, allows no commercial use"
    for name, role in sorted(desired.roles.items()):
        if role.kind != "reranking":
            continue
        for rung in role.endpoints:
            if rung.helper is not None and _api(desired, rung.helper) == "ollama":
                yield f"{name} is never asked of {rung.helper}: Ollama has no reranking API"


def _api(desired: Desired, helper: HelperName) -> str | None:
    return desired.helpers[helper].api if helper in desired.helpers else None


def _services_of(role: RoleShape) -> list[ServiceName]:
    named = [rung.service for rung in role.endpoints if rung.service is not None]
    return [*named, role.local] if role.local is not None else named


def _models_of_services(desired: Desired) -> dict[ServiceName, ModelSpec]:
    specs = (unit.spec for unit in desired.units.values())
    return {spec.service: spec.model for spec in specs if isinstance(spec, WorkerSpec | EngineSpec)}
