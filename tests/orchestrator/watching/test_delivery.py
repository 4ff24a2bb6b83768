"""A watcher brings changed keys and memory budgets by themselves, once, and to nodes that come back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.observed import Unreachable
from orchestrator.planned import Planned
from orchestrator.scope import no_longer_lost
from orchestrator.watching.delivery import Deliveries, PlanAgain, can_deliver
from schemas.base import NodeName
from tests.orchestrator.test_controller import ALPHA, BETA
from tests.orchestrator.test_controller import planned as plan_in


class Recorded:
    """Counts what is brought to the nodes."""

    stack = "lab"

    def __init__(self) -> None:
        self.brought = 0
        self.latest: Planned | None = None
        self.is_locked = False

    @contextlib.asynccontextmanager
    async def lock(self, command: str, *, yields: bool) -> AsyncIterator[None]:
        self.is_locked = True
        yield
        self.is_locked = False

    async def allot(self, planned: Planned) -> None:
        self.brought += 1
        self.latest = planned


def stays(planned: Planned | None) -> PlanAgain:
    """Return what plans again, and finds this."""

    async def again() -> Planned | None:
        return planned

    return again


def with_reserve(planned: Planned, node: NodeName, gib: float) -> Planned:
    nodes = {**planned.desired.nodes, node: planned.desired.nodes[node].model_copy(update={"reserve_gib": gib})}
    return replace(planned, desired=replace(planned.desired, nodes=nodes))


def without(planned: Planned, node: NodeName) -> Planned:
    nodes = {**planned.observed.nodes, node: Unreachable("no route")}
    return replace(planned, observed=replace(planned.observed, nodes=nodes))


async def test_changed_keys_and_budgets_are_brought_once(tmp_path: Path) -> None:
    at, keys = plan_in(tmp_path), tmp_path / "keys.yaml"
    at = replace(at, desired=replace(at.desired, owner=str(tmp_path), keys_file=keys.name))
    control: Any = Recorded()
    deliveries = Deliveries(control)
    await deliveries.bring(at, stays(at))
    await deliveries.bring(at, stays(at))
    assert control.brought == 0, "as the last apply left them"
    keys.write_text("keys: {}")
    await deliveries.bring(at, stays(at))
    await deliveries.bring(at, stays(at))
    assert control.brought == 1
    at = with_reserve(at, ALPHA, 2.0)
    await deliveries.bring(at, stays(at))
    await deliveries.bring(at, stays(at))
    assert control.brought == 2


async def test_a_node_that_comes_back_is_told_what_changed_meanwhile(tmp_path: Path) -> None:
    at = plan_in(tmp_path)
    control: Any = Recorded()
    deliveries = Deliveries(control)
    await deliveries.bring(at, stays(at))
    later = with_reserve(at, ALPHA, 2.0)
    await deliveries.bring(without(later, ALPHA), stays(without(later, ALPHA)))
    assert control.brought == 0
    await deliveries.bring(later, stays(later))
    assert control.brought == 1


async def test_what_a_command_has_changed_since_the_look_is_not_undone(tmp_path: Path) -> None:
    control: Any = Recorded()
    deliveries = Deliveries(control)
    at = plan_in(tmp_path)
    await deliveries.bring(at, stays(at))
    seen, applied = with_reserve(at, ALPHA, 2.0), with_reserve(at, ALPHA, 3.0)

    async def plan_again() -> Planned:
        assert control.is_locked
        return applied

    await deliveries.bring(seen, plan_again)
    assert (control.brought, control.latest) == (1, applied)
    await deliveries.bring(applied, stays(applied))
    assert control.brought == 1


async def test_what_cannot_be_brought_once_the_lock_is_ours_is_brought_by_a_later_look(tmp_path: Path) -> None:
    control: Any = Recorded()
    deliveries = Deliveries(control)
    at = plan_in(tmp_path)
    await deliveries.bring(at, stays(at))
    later = with_reserve(at, ALPHA, 2.0)
    await deliveries.bring(later, stays(None))
    assert control.brought == 0
    await deliveries.bring(later, stays(later))
    assert (control.brought, control.latest) == (1, later)


def test_a_plan_that_waits_for_something_lets_keys_be_brought(tmp_path: Path) -> None:
    at = plan_in(tmp_path)
    assert not at.plan.is_empty
    assert can_deliver(at)
    assert not can_deliver(replace(at, plan=replace(at.plan, conflicts=("no",))))
    assert not can_deliver(without(at, at.cluster.gateway))


def test_what_answers_or_has_left_the_files_is_lost_no_longer(tmp_path: Path) -> None:
    at = without(plan_in(tmp_path), ALPHA)
    gone = NodeName("gone")
    ended = no_longer_lost({ALPHA, BETA, gone}, at.desired.nodes, at.observed.nodes)
    assert set(ended) == {BETA, gone}
    assert "answers" in ended[BETA]
    assert "has left the files" in ended[gone]
