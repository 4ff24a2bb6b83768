"""Pure: which models a stack's units need, in which form, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.engines import model_form
from orchestrator.models.sources import HubSource, PackageSource, parse_source
from orchestrator.observed import ModelForm
from schemas.base import NodeName, SlotId
from schemas.unit import AnyUnitSpec, EngineSpec, ModelSpec, WorkerSpec, models_of

COMMIT_CHARS = 40
"""A git commit in hexadecimal digits: what a revision of a hub is pinned to."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A model in the form that some unit needs."""

    model: ModelSpec
    form: ModelForm


@dataclass(frozen=True, slots=True)
class Need:
    """A wish with the nodes that it is for, and the slots that it serves."""

    wish: Wish
    nodes: tuple[NodeName, ...]
    slots: tuple[SlotId, ...]


def wishes_of(spec: AnyUnitSpec | None) -> tuple[Wish, ...]:
    """Return what a unit loads: its model, and its draft model behind it; nothing where it is told another way.

    Raises EngineError.
    """
    match spec:
        case WorkerSpec():
            return tuple(Wish(model, "mlx") for model in models_of(spec))
        case EngineSpec():
            form = model_form(spec)
            return () if form is None else (Wish(spec.model, form),)
        case _:
            return ()


def needs(specs: Iterable[AnyUnitSpec]) -> tuple[Need, ...]:
    """Return what the units of a stack need, by model and form, each with its nodes."""
    found: dict[Wish, tuple[list[NodeName], list[SlotId]]] = {}
    for spec in specs:
        for wish in wishes_of(spec):
            nodes, slots = found.setdefault(wish, ([], []))
            nodes += [spec.node] if spec.node not in nodes else []
            slots.append(spec.slot)
    ordered = sorted(found.items(), key=lambda item: (item[0].model.name, item[0].form))
    return tuple(Need(wish, tuple(nodes), tuple(slots)) for wish, (nodes, slots) in ordered)


def is_pinned(model: ModelSpec) -> bool:
    """Tell whether a model cannot become another one by itself: a branch of a hub can."""
    match parse_source(model.source):
        case HubSource():
            return model.revision is not None and len(model.revision) == COMMIT_CHARS
        case PackageSource():
            return model.revision is not None
        case _:
            return True
