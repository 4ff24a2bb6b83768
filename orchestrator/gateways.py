"""I/O: the gateways of one stack while a plan is carried out: two share a port while one takes the other's place."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from orchestrator.cluster import Cluster
from orchestrator.expand import Desired
from orchestrator.plan import Plan, Stop
from orchestrator.readiness import reload_gateways, requests_in_flight
from orchestrator.reconcile import GATEWAY_SLOT
from schemas.admin import ConfigReport
from schemas.base import UnitId
from schemas.unit import GatewaySpec, slot_of


class Gateways:
    """The gateways that a plan finds, starts and stops. What is asked of them is asked of each that listens."""

    def __init__(self, cluster: Cluster, desired: Desired, leaving: Collection[UnitId] = ()) -> None:
        """`leaving` are those that the plan stops, see `leaving_gateways`."""
        unit = desired.units.get(GATEWAY_SLOT)
        self._spec = unit.spec if unit is not None and isinstance(unit.spec, GatewaySpec) else None
        self._cluster = cluster
        self._leaving = set(leaving)
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
        return 1 + len(self._leaving)

    def _token(self) -> str | None:
        return self._cluster.directories.known_admin_token(self._cluster.stack)


def leaving_gateways(plan: Plan) -> frozenset[UnitId]:
    """Return the gateways that a plan stops, such as those whose place another one takes."""
    stops = (action.unit for action in plan.actions if isinstance(action, Stop))
    return frozenset(unit for unit in stops if slot_of(unit) == GATEWAY_SLOT)
