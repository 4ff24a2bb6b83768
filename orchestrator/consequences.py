"""Pure: what a plan does to those who ask: who is left to answer, and for how long a role does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.expand import Desired
from orchestrator.ladders import RoleShape, Rung, ladder, served_roles
from orchestrator.observed import HelperSilent, Observed
from schemas.base import RoleName, ServiceName
from schemas.unit import GATEWAY_SERVICE


@dataclass(slots=True)
class Service:
    """What a plan makes of one service, over all its replicas."""

    serving: int = 0
    """Replicas that answer now and until their successors do."""
    coming: list[str] = field(default_factory=list)
    """How long it takes until others answer, in words; `for now` where nothing is started."""
    is_unseen: bool = False
    """Some of it is on a node that did not answer: it may serve or not."""

    @property
    def will_serve(self) -> bool:
        """Tell whether something of it answers when the plan is done."""
        return self.serving > 0 or any(wait != "for now" for wait in self.coming)


Services = Mapping[ServiceName, Service]


def routing_notes(desired: Desired, observed: Observed, services: Services) -> Iterator[str]:
    """Yield what each role can lose, and what it loses by this plan or by what does not answer."""
    before = {} if observed.gateway is None else served_roles(observed.gateway.routing)
    for name, role in sorted(desired.roles.items()):
        yield from _ladder_change(name, before, desired.roles)
        left = [rung for rung in role.endpoints if _will_serve(rung, observed, services)]
        known = "that can be seen" if any(_is_unseen(rung, services) for rung in role.endpoints) else "left"
        if not left:
            yield f"{name} has no endpoint {known}, {role.fallback}"
        elif len(left) < len(role.endpoints) and len(left) == 1:
            yield f"{name} has one endpoint {known} ({left[0]}) and {role.fallback}"
        elif len(role.endpoints) == 1:
            yield f"{name} has one endpoint and {role.fallback}"


def _ladder_change(
    name: RoleName, before: Mapping[RoleName, RoleShape], after: Mapping[RoleName, RoleShape]
) -> Iterator[str]:
    if name not in before:
        return
    old, new = len(ladder(name, before)) - 1, len(ladder(name, after)) - 1
    if new == 0 < old:
        yield f"{name} loses its ladder: fallback depth {old} -> 0"
    elif old != new:
        yield f"{name}: fallback depth {old} -> {new}"


def outages(desired: Desired, observed: Observed, services: Services) -> Iterator[str]:
    """Yield the roles that a running gateway cannot serve for a while, and for how long.

    A role with another rung that answers now does not notice: the gateway walks down its ladder.
    """
    if observed.gateway is None or not desired.units:
        return
    gateway = services.get(ServiceName(GATEWAY_SERVICE))
    if gateway is not None and not gateway.serving and gateway.coming:
        yield f"everything {gateway.coming[0]}"
        return
    for name in sorted(desired.roles):
        rungs = ladder(name, desired.roles)
        if any(_serves_now(rung, observed, services) for rung in rungs):
            continue
        found = [services[rung.service] for rung in rungs if rung.service is not None and rung.service in services]
        waits = [wait for service in found for wait in service.coming]
        if waits:
            yield f"{name} {waits[0]}"


def _serves_now(rung: Rung, observed: Observed, services: Services) -> bool:
    if rung.service is not None:
        return rung.service in services and services[rung.service].serving > 0
    return not _is_silent(rung, observed)


def _will_serve(rung: Rung, observed: Observed, services: Services) -> bool:
    if rung.service is not None:
        return rung.service in services and services[rung.service].will_serve
    return not _is_silent(rung, observed)


def _is_unseen(rung: Rung, services: Services) -> bool:
    return rung.service is not None and rung.service in services and services[rung.service].is_unseen


def _is_silent(rung: Rung, observed: Observed) -> bool:
    return rung.helper is not None and isinstance(observed.helpers.get(rung.helper), HelperSilent)
