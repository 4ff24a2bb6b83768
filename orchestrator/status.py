"""Pure: how a stack is, in lines for people and in objects for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from orchestrator.drain import drained_note
from orchestrator.groups import group_nodes, group_of
from orchestrator.helpers.compare import describe, helper_data
from orchestrator.observed import Observed, ObservedUnit, OnDemandSeen, Unreachable
from orchestrator.policy import restart
from orchestrator.watching.report import WatcherReport
from orchestrator.worker_words import rank_lines, worker_words
from schemas.admin import EndpointReport
from schemas.problems import Problem
from schemas.unit import WorkerSpec
from schemas.verdict import CANARY_FAILED

UnitState = Literal["ready", "cold", "loading", "silent", "ended", "backoff", "failed"]
_DEMAND_STATES: Mapping[str, UnitState] = {
    "cold": "cold",
    "unloading": "cold",
    "loading": "loading",
    "warming": "loading",
}


@dataclass(frozen=True, slots=True)
class StackStatus:
    """One stack as it was seen."""

    stack: str
    conf: str
    """The configuration directory that was looked at."""
    observed: Observed
    now: float
    """Seconds since the epoch."""
    pending: int | None = None
    """Changes that an apply would make; None while the files cannot be used."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the files."""
    rolled_back: str | None = None
    """What was gone back to, in words, while that is in force."""
    watcher: WatcherReport | None = None
    """The watcher, where one lives."""


def unit_state(unit: ObservedUnit, *, is_watched: bool) -> tuple[UnitState, float]:
    """Return how a unit is, and for `silent` since when and for `backoff` how long still, in seconds."""
    if unit.alive:
        if unit.silent_s > 0:
            return "silent", unit.silent_s
        if unit.demand is not None and unit.ready:
            return _DEMAND_STATES.get(unit.demand.phase, "ready"), 0.0
        return ("ready" if unit.ready else "loading"), 0.0
    judged = restart(unit.crashes_s)
    if judged.is_loop:
        return "failed", 0.0
    return ("backoff", judged.delay_s) if is_watched and judged.delay_s > 0 else ("ended", 0.0)


def status_lines(status: StackStatus) -> Iterator[str]:
    """Yield what people read; `summary_lines` come after it."""
    observed, routes = status.observed, status.observed.routes
    at = f", generation {routes.generation}" if routes else ""
    revision = f" at {routes.revision}" if routes and routes.revision else ""
    yield f"Stack {status.stack}{at}{revision}"
    units = observed.units()
    groups = list(_grouped(units))
    rows = [_row(members, status) for members in groups]
    width = max((len(name) for name, _, _ in rows), default=0)
    for (name, state, text), members in zip(rows, groups, strict=True):
        yield f"  {name:<{max(width, 24)}} {state:<8} {text}".rstrip()
        yield from (f"    {line}" for line in _rank_lines(members))
    for node, seen in sorted(observed.nodes.items()):
        if isinstance(seen, Unreachable):
            yield f"  {node} cannot be reached: {seen.reason}"
    for helper, what in observed.helpers.items():
        yield f"  helper {describe(helper, what)}"
    if not units:
        yield "  nothing runs"
    for name in routes.drained if routes else ():
        yield f"  {drained_note(status.stack, name)}"
    yield from _role_lines(status)
    if status.watcher is not None:
        yield _watcher_line(status.watcher, status.now)


def _grouped(units: Sequence[ObservedUnit]) -> Iterator[list[ObservedUnit]]:
    """Yield units by themselves, and the ranks of one launch of a group together."""

    def key(unit: ObservedUnit) -> tuple[str, str, str]:
        if unit.alive and isinstance(unit.spec, WorkerSpec) and unit.spec.group is not None:
            return ("", group_of(unit.slot), unit.launch or "")
        return (unit.node, unit.slot, unit.id)

    for _, members in groupby(sorted(units, key=lambda unit: (key(unit), unit.slot)), key=key):
        yield list(members)


def _row(members: list[ObservedUnit], status: StackStatus) -> tuple[str, str, str]:
    first = members[0]
    if first.alive and isinstance(first.spec, WorkerSpec) and first.spec.group is not None:
        return _group_row(members, status)
    (unit,) = members
    state, seconds = unit_state(unit, is_watched=status.watcher is not None)
    return f"{unit.node}/{unit.slot}", state, "; ".join(_unit_words(unit, state, seconds, status))


def _unit_words(unit: ObservedUnit, state: UnitState, seconds: float, status: StackStatus) -> Iterator[str]:
    if unit.alive:
        parts = [f"pid {unit.pid}"] + ([f"port {unit.port}"] if unit.port else [])
        if unit.started_at:
            parts.append(f"up {duration(max(0.0, status.now - unit.started_at))}")
        routes = status.observed.routes
        if unit.generation is not None and routes is not None and unit.generation != routes.generation:
            parts.append(f"since generation {unit.generation}")
        yield ", ".join(parts)
    else:
        yield unit.exit or unit.phase
        yield from _canary_words(unit)
    if unit.demand is not None and unit.alive:
        yield from _demand_words(unit.demand)
    if unit.worker is not None and unit.alive:
        yield from worker_words(unit.worker)
    if state == "silent":
        yield f"has not answered for {seconds:.0f} s"
    elif state == "backoff":
        yield f"next try in {seconds:.0f} s"
    elif state == "failed":
        yield f"ended {len(unit.crashes_s)} times; when mended: restart {status.stack} {group_of(unit.slot)}"


def _demand_words(seen: OnDemandSeen) -> Iterator[str]:
    """Yield how it is with a model that is loaded on demand."""
    report = seen.report
    if seen.phase == "cold":
        yield f"on demand, not in memory for {duration(report.since_s)}"
    elif report.eta_s is not None:
        yield f"on demand, {seen.phase}, about {duration(report.eta_s)} left"
    elif report.idle_s is not None:
        yield f"on demand, idle for {duration(report.idle_s)}"
    else:
        yield "on demand, in use" if seen.phase == "ready" else f"on demand, {seen.phase}"
    if report.failure is not None:
        yield f"its last load failed: {report.failure}"


def _group_row(members: list[ObservedUnit], status: StackStatus) -> tuple[str, str, str]:
    """Return one line for the living ranks of a group: it serves when rank 0 does and all of them live."""
    first = members[0]
    size = len(group_nodes(first.spec))
    states = [unit_state(unit, is_watched=status.watcher is not None)[0] for unit in members]
    head = next((state for unit, state in zip(members, states, strict=True) if unit.slot.endswith(".0")), "loading")
    state = head if len(members) == size else "partial"
    ranks = [f"{unit.slot.rpartition('.')[2]} on {unit.node}" for unit in members]
    words = [f"ranks {', '.join(ranks)}"]
    if len(members) < size:
        words.append(f"{len(members)} of {size} live")
    words += [f"port {unit.port}" for unit in members if unit.port]
    words += [unit.verdict.line() for unit in members if unit.verdict is not None and unit.verdict.outcome != "off"]
    words += [line for unit in members if unit.worker is not None for line in worker_words(unit.worker)]
    if first.started_at:
        words.append(f"up {duration(max(0.0, status.now - first.started_at))}")
    return str(group_of(first.slot)), state, "; ".join(words)


def _rank_lines(members: Sequence[ObservedUnit]) -> Iterator[str]:
    """Yield how each rank of a group is, as rank 0 knows it; nothing of other units."""
    nodes = {unit.spec.rank: unit.node for unit in members if isinstance(unit.spec, WorkerSpec)}
    for unit in members:
        if unit.alive and unit.worker is not None:
            yield from rank_lines(unit.worker, nodes)


def _canary_words(unit: ObservedUnit) -> Iterator[str]:
    """Yield what differed, of a group that ended for it: rank 0 has logged it."""
    if unit.slot.endswith(".0"):
        lines = [line.partition(CANARY_FAILED)[2] for line in unit.log_tail if CANARY_FAILED in line]
        yield from lines[:1]


def _role_lines(status: StackStatus) -> Iterator[str]:
    """Yield the endpoints that the gateway reports, by role, the best first; `*` is where a request would go now."""
    gateway = status.observed.gateway
    if gateway is None:
        return
    is_well = all(unit.ready for unit in status.observed.units())
    has_ladders = any(
        len({endpoint.priority for endpoint in gateway.endpoints if endpoint.role == role}) > 1
        for role in {endpoint.role for endpoint in gateway.endpoints}
    )
    for endpoint in gateway.endpoints:
        yield "  " + _endpoint_line(endpoint, is_well=is_well, has_ladders=has_ladders)
    for name, count in sorted(gateway.held.items()):
        yield f"  {count} request{'s' if count != 1 else ''} for {name} held until its successor is ready"


def _endpoint_line(endpoint: EndpointReport, *, is_well: bool, has_ladders: bool) -> str:
    rung = ""
    if has_ladders:
        rung = " (fallback)" if endpoint.priority is None else f" (rung {endpoint.priority})"
        rung += " *" if endpoint.is_serving else ""
    error = ""
    if endpoint.last_error and not (endpoint.state == "ready" and is_well):  # else its last error is over
        error = f", last error: {endpoint.last_error}"
    return f"role {endpoint.role}: {endpoint.name} is {endpoint.state}, {endpoint.in_flight} in flight{error}{rung}"


def _watcher_line(watcher: WatcherReport, now: float) -> str:
    words = [
        f"watched by pid {watcher.pid}: {watcher.state}",
        f"looked {duration(max(0.0, now - watcher.looked_at))} ago",
    ]
    if watcher.last_change is not None and watcher.last_change_at is not None:
        words.append(f"last {duration(max(0.0, now - watcher.last_change_at))} ago: {watcher.last_change}")
    return "; ".join([", ".join(words), *watcher.notes])


def status_data(status: StackStatus) -> Iterator[dict[str, Any]]:
    """Yield the same as objects, one for each unit, node and helper; the last one is about the whole."""
    observed, gateway = status.observed, status.observed.gateway
    for unit in observed.units():
        state, seconds = unit_state(unit, is_watched=status.watcher is not None)
        yield {
            "type": "unit",
            "stack": status.stack,
            "node": unit.node,
            "unit": unit.id,
            "slot": unit.slot,
            "group": group_of(unit.slot),
            "alive": unit.alive,
            "ready": unit.ready,
            "state": state,
            "pid": unit.pid,
            "port": unit.port,
            "started_at": unit.started_at,
            "generation": unit.generation,
            "exit": unit.exit,
            "crashes": len(unit.crashes_s),
            "next_try_s": seconds if state == "backoff" else None,
            "silent_s": unit.silent_s,
            "on_demand": None
            if unit.demand is None
            else {"phase": unit.demand.phase, **unit.demand.report.model_dump()},
            "worker": unit.worker.model_dump(mode="json") if unit.worker is not None else None,
            "canary": unit.verdict.model_dump(mode="json") if unit.verdict is not None else None,
        }
    for node, seen in sorted(observed.nodes.items()):
        line: dict[str, Any] = {"type": "node", "stack": status.stack, "node": node}
        if isinstance(seen, Unreachable):
            yield {**line, "reachable": False, "reason": seen.reason}
        else:
            memory = {"memory_gib": seen.memory_gib, "memory_available_gib": seen.memory_available_gib}
            yield {**line, "reachable": True, **memory}
    for helper, what in observed.helpers.items():
        yield {"type": "helper", "stack": status.stack, "helper": helper, **helper_data(what)}
    yield {
        "type": "status",
        "stack": status.stack,
        "generation": observed.routes.generation if observed.routes else None,
        "gateway": gateway.model_dump(mode="json") if gateway is not None else None,
        "problems": [problem.model_dump(mode="json") for problem in shown_problems(status)],
        "changes_pending": status.pending,
        "rolled_back": status.rolled_back,
        "drained": list(observed.routes.drained) if observed.routes else [],
        "watcher": status.watcher.model_dump(mode="json") if status.watcher is not None else None,
    }


def shown_problems(status: StackStatus) -> tuple[Problem, ...]:
    """Return what is wrong with the files, as this program or else the gateway reads them."""
    gateway = status.observed.gateway
    return status.problems or (gateway.problems if gateway is not None else ())


def duration(seconds: float) -> str:
    """Return a time span in the unit that people would use."""
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"
