"""I/O: the gateways of one stack while a plan is carried out: two share a port while one takes the other's place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.cluster import Cluster
from orchestrator.expand import Desired
from orchestrator.plan import Plan, Start, Stop
from orchestrator.readiness import reload_gateways, requests_in_flight
from orchestrator.reconcile import GATEWAY_SLOT
from schemas.admin import ConfigReport
from schemas.base import UnitId
from schemas.unit import GatewaySpec, slot_of


@dataclass(frozen=True, slots=True)
class Handover:
    """What a plan does to the gateways that it finds."""

    leaving: frozenset[UnitId] = frozenset()
    """Those that it stops, such as those whose place another one takes."""
    starts: bool = False
    """Whether it starts one; where it does not, one that stays may run beside those that leave."""


NO_HANDOVER = Handover()


def handover_of(plan: Plan) -> Handover:
    """Return what a plan does to the gateways."""
    stops = (action.unit for action in plan.actions if isinstance(action, Stop))
    starts = (action.first.unit.id for action in plan.actions if isinstance(action, Start))
    leaving = frozenset(unit for unit in stops if slot_of(unit) == GATEWAY_SLOT)
    return Handover(leaving, any(slot_of(unit) == GATEWAY_SLOT for unit in starts))


class Gateways:
    """The gateways that a plan finds, starts and stops. What is asked of them is asked of each that listens."""

    def __init__(self, cluster: Cluster, desired: Desired, handover: Handover = NO_HANDOVER) -> None:
        unit = desired.units.get(GATEWAY_SLOT)
        self._spec = unit.spec if unit is not None and isinstance(unit.spec, GatewaySpec) else None
        self._cluster = cluster
        self._leaving = set(handover.leaving)
        self._is_beside = not handover.starts
        """Whether one listens, or may, that is none of those that leave."""
        self._ending: set[UnitId] = set()
        """Those that were told to end: they listen no more, and finish what they have."""
        self._is_deaf = False
        """Whether one takes connections and does not answer: it is not waited for a second time."""

    async def follow(self) -> ConfigReport | None:
        """Make them read their files; returns what is served then, None where none answers."""
        if self._spec is None or self._is_deaf:
            return None
        make, bind, port = self._cluster.gateway_node.http, self._spec.bind, self._spec.port
        try:
            found = await reload_gateways(make, bind, port, self._token(), self._processes)
        except TimeoutError:
            self._is_deaf = True
            return None
        return max(found, key=lambda report: report.is_current, default=None)

    async def in_flight(self, url: str) -> int | None:
        """Return how many requests they have under way to an address; None where that cannot be known now.

        One that ends is asked by nobody any more: what it has in flight may be anywhere.
        """
        if self._spec is None or self._is_deaf:
            return 0
        make, bind, port = self._cluster.gateway_node.http, self._spec.bind, self._spec.port
        found = await requests_in_flight(make, bind, port, self._token(), self._processes, url)
        return None if self._ending else found

    def started(self, unit: UnitId) -> None:
        """Note that a unit was started: a gateway may listen beside the one before from now on."""
        self._is_beside |= slot_of(unit) == GATEWAY_SLOT

    @contextlib.contextmanager
    def ending(self, unit: UnitId) -> Iterator[None]:
        """Know, while the context lasts, that a unit ends; that it has ended, once it was left without an error."""
        if unit not in self._leaving:
            yield
            return
        self._ending.add(unit)
        try:
            yield
            self._leaving.discard(unit)
        finally:
            self._ending.discard(unit)

    @property
    def _processes(self) -> int:
        return max(1, len(self._leaving) + self._is_beside)

    def _token(self) -> str | None:
        return self._cluster.directories.known_admin_token(self._cluster.stack)
