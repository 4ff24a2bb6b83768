"""Pure: who can answer for a role, in which order, and what is left when some of them cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from schemas.base import HelperName, RoleName, ServiceName
from schemas.model import ModelKind
from schemas.stack import HelperEndpoint, LocalFallback, Role, RoleFallback, ServiceEndpoint


@dataclass(frozen=True, slots=True)
class Rung:
    """One place of a ladder: a service of ours, or a helper."""

    service: ServiceName | None = None
    helper: HelperName | None = None
    model: str | None = None
    """Of a helper: which of its models."""

    def __str__(self) -> str:
        return str(self.service or self.helper)


@dataclass(frozen=True, slots=True)
class RoleShape:
    """How a role is served: its endpoints in the order in which they are asked, and what is behind them."""

    endpoints: tuple[Rung, ...]
    local: ServiceName | None = None
    """The service that it falls back to."""
    role: RoleName | None = None
    """The role that it falls back to."""
    is_skipped: bool = False
    """Without an endpoint it is answered without being done, as reranking can be."""
    kind: ModelKind = "chat"
    dimensions: int | None = None
    """The length of its vectors, where the files pin it."""

    @property
    def fallback(self) -> str:
        """Return what is behind the endpoints, in words."""
        if self.local is not None:
            return f"fallback service {self.local}"
        if self.role is not None:
            return f"fallback role {self.role}"
        return "fallback skip" if self.is_skipped else "no fallback"


def role_shape(role: Role, kind: ModelKind = "chat") -> RoleShape:
    """Return the ladder of a role of the files, which is of a kind."""
    places = sorted(role.endpoints.items(), key=lambda place: (place[1].priority, place[0]))
    shape = RoleShape(tuple(_rung(endpoint) for _, endpoint in places), kind=kind, dimensions=role.dimensions)
    match role.fallback:
        case LocalFallback(local=service):
            return replace(shape, local=service)
        case RoleFallback(role=other):
            return replace(shape, role=other)
        case fallback:
            return replace(shape, is_skipped=fallback == "skip")


def _rung(endpoint: ServiceEndpoint | HelperEndpoint) -> Rung:
    if isinstance(endpoint, ServiceEndpoint):
        return Rung(service=endpoint.service)
    return Rung(helper=endpoint.helper, model=endpoint.model)


def served_roles(routing: Mapping[str, str]) -> dict[RoleName, RoleShape]:
    """Return the ladders that a gateway serves, from the routing fields that it reports; what is unreadable is skipped.

    The fields are dotted keys, and names may have dots: a key is taken apart at the words that cannot be names' parts.
    """
    endpoints: dict[RoleName, dict[str, dict[str, object]]] = {}
    fallbacks: dict[RoleName, dict[str, object]] = {}
    for key, text in routing.items():
        if not key.startswith("roles."):
            continue
        role, is_endpoint, rest = key.removeprefix("roles.").partition(".endpoints.")
        value = _value(text)
        if is_endpoint:
            place, _, field = rest.rpartition(".")
            endpoints.setdefault(RoleName(role), {}).setdefault(place, {})[field] = value
            continue
        for tail in ("fallback.local", "fallback.role", "fallback"):
            if key.endswith(f".{tail}"):
                role = key.removeprefix("roles.").removesuffix(f".{tail}")
                fallbacks.setdefault(RoleName(role), {})[tail] = value
                break
    return {role: _served(places, fallbacks.get(role, {})) for role, places in endpoints.items()}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _served(places: Mapping[str, Mapping[str, object]], fallback: Mapping[str, object]) -> RoleShape:
    def priority(name: str) -> tuple[int, str]:
        value = places[name].get("priority", 1)
        return (value if isinstance(value, int) else 1, name)

    rungs = []
    for name in sorted(places, key=priority):
        place = places[name]
        if "service" in place:
            rungs.append(Rung(service=ServiceName(str(place["service"]))))
        elif "helper" in place:
            rungs.append(Rung(helper=HelperName(str(place["helper"])), model=str(place.get("model"))))
    local, role = fallback.get("fallback.local"), fallback.get("fallback.role")
    return RoleShape(
        tuple(rungs),
        local=None if local is None else ServiceName(str(local)),
        role=None if role is None else RoleName(str(role)),
        is_skipped=fallback.get("fallback") == "skip",
    )


def ladder(name: RoleName, roles: Mapping[RoleName, RoleShape]) -> tuple[Rung, ...]:
    """Return everybody who can answer for a role, each once, first to last, fallbacks of fallbacks included."""
    found: dict[Rung, None] = {}
    passed: set[RoleName] = set()
    current: RoleName | None = name
    while current is not None and current not in passed and current in roles:
        passed.add(current)
        shape = roles[current]
        found |= dict.fromkeys(shape.endpoints)
        if shape.local is not None:
            found[Rung(service=shape.local)] = None
        current = shape.role
    return tuple(found)
