"""Pure: what is true of a name that clients ask for, which several endpoints may serve.

Who reads the facts of a name wants to know what may be sent to it, and any endpoint of its first tier may get that. So
the context is the smallest of theirs; a capability is there where all of them are known to have it, absent where one is
known to lack it, else unknown; anything else is told where all say the same. Later tiers and fallbacks answer only when
those cannot, and are not counted, except that a name is loaded where any endpoint of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from runtime.gateway.facts.known import UNKNOWN, Capability, FactBook, Facts
from runtime.gateway.routing.table import Card, EndpointIdentity, Route, RoutingTable, Target
from schemas.model import ModelKind

_ASKED: dict[ModelKind, frozenset[Capability]] = {
    "chat": frozenset({"completion"}),
    "embedding": frozenset({"embedding"}),
    "reranking": frozenset({"rerank"}),
}
"""By the kind of a route, which the files say: nothing else can be asked of it, whatever its model can do."""
_OTHERS: dict[ModelKind, frozenset[Capability]] = {
    "chat": frozenset({"embedding", "rerank"}),
    "embedding": frozenset({"completion", "rerank", "tools", "thinking", "json_schema", "logprobs", "insert"}),
    "reranking": frozenset({"completion", "embedding", "tools", "thinking", "json_schema", "logprobs", "insert"}),
}

T = TypeVar("T")
MayName = Callable[[str], bool]
"""Tells whether who asks may know of a name."""


def anybody(_name: str) -> bool:
    """Allow every name."""
    return True


@dataclass(frozen=True, slots=True)
class Named:
    """A name that clients may ask for, and what is true of it."""

    name: str
    card: Card
    facts: Facts
    """Of all endpoints that may answer first."""
    endpoints: tuple[tuple[Target, Facts], ...]
    """These endpoints, each with what is known of it."""


def listed(table: RoutingTable, book: FactBook, may_name: MayName = anybody) -> list[Named]:
    """Return every name of the models list that `may_name` allows, in the list's order."""
    return [_named(card, table.routes[card.id], book) for card in table.cards if may_name(card.id)]


def find(table: RoutingTable, book: FactBook, name: str, may_name: MayName = anybody) -> Named | None:
    """Return what is true of a name, be it listed or not; None where nobody serves it or `may_name` refuses it."""
    route = table.routes.get(name)
    if route is None or not may_name(name):
        return None
    card = next((card for card in table.cards if card.id == name), None)
    return _named(card or Card(name, "orchestrate", "model", route.kind), route, book)


def loaded(table: RoutingTable, book: FactBook, may_name: MayName = anybody) -> list[Named]:
    """Return the models that are in some endpoint's memory now, in the list's order.

    Models are told by their own names, once: roles and aliases only name the same ones again. Of a model that several
    endpoints hold, the sizes are added up and the last one to expire counts.
    """
    everybody: dict[str, dict[EndpointIdentity, Target]] = {}
    for target in table.targets():
        everybody.setdefault(target.identity.model, {}).setdefault(target.identity, target)
    found = []
    for card in table.cards:
        if card.kind == "model" and may_name(card.id):
            places = ((target, book.of(target)) for target in everybody.get(card.id, {}).values())
            holders = tuple((target, facts) for target, facts in places if facts.is_loaded)
            if holders:
                found.append(Named(card.id, card, together(card.task, [facts for _, facts in holders]), holders))
    return found


def of_route(route: Route, book: FactBook) -> Facts:
    """Return what is true of all endpoints that may answer a route's requests first."""
    first = route.tiers[0] if route.tiers else ()
    facts = together(route.kind, [book.of(target) for target in first])
    is_loaded, dimensions = facts.is_loaded, route.dimensions or facts.dimensions
    if len(route.tiers) > 1:
        is_loaded = _any_true([book.of(target).is_loaded for target in route.targets()])
    if (is_loaded, dimensions) == (facts.is_loaded, facts.dimensions):
        return facts
    return replace(facts, is_loaded=is_loaded, dimensions=dimensions)


def together(kind: ModelKind, facts: Sequence[Facts]) -> Facts:
    """Return what is true of several endpoints that serve one name of this kind."""
    if not facts:
        return UNKNOWN
    if len(facts) == 1:
        (one,) = facts
        known = one.can | _ASKED[kind]
        return replace(one, can=known - _OTHERS[kind], cannot=(one.cannot - known) | _OTHERS[kind])
    able = frozenset.intersection(*(one.can for one in facts)) | _ASKED[kind]
    moments = [one.observed_at for one in facts]
    return Facts(
        source=_same(one.source for one in facts) or "",
        observed_at=None if None in moments else min(moment for moment in moments if moment is not None),
        context_length=_least(one.context_length for one in facts),
        trained_context_length=_least(one.trained_context_length for one in facts),
        max_output=_least(one.max_output for one in facts),
        can=able - _OTHERS[kind],
        cannot=(frozenset.union(*(one.cannot for one in facts)) - able) | _OTHERS[kind],
        dimensions=_same(one.dimensions for one in facts),
        architecture=_same(one.architecture for one in facts),
        parameter_count=_same(one.parameter_count for one in facts),
        parameter_size=_same(one.parameter_size for one in facts),
        quantisation=_same(one.quantisation for one in facts),
        format=_same(one.format for one in facts),
        size_bytes=_same(one.size_bytes for one in facts),
        digest=_same(one.digest for one in facts),
        modified_at=_same(one.modified_at for one in facts),
        is_loaded=_any_true([one.is_loaded for one in facts]),
        expires_at=_last_to_expire(facts),
        size_loaded=_sum(one.size_loaded for one in facts if one.is_loaded),
        size_vram=_sum(one.size_vram for one in facts if one.is_loaded),
    )


def _named(card: Card, route: Route, book: FactBook) -> Named:
    first = route.tiers[0] if route.tiers else ()
    return Named(card.id, card, of_route(route, book), tuple((target, book.of(target)) for target in first))


def _least(numbers: Iterable[int | None]) -> int | None:
    """Return the smallest number; None where one is unknown: it may be smaller still."""
    found = list(numbers)
    return None if None in found else min(number for number in found if number is not None)


def _same(values: Iterable[T | None]) -> T | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _any_true(states: Sequence[bool | None]) -> bool | None:
    return True if True in states else None if None in states or not states else False


def _sum(numbers: Iterable[int | None]) -> int | None:
    found = [number for number in numbers if number is not None]
    return sum(found) if found else None


def _last_to_expire(facts: Sequence[Facts]) -> float | None:
    moments = [one.expires_at for one in facts if one.is_loaded]
    return None if not moments or None in moments else max(moment for moment in moments if moment is not None)
