"""Pure: what is written into a unit's record when it is started, and what its record says afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from orchestrator.node.reports import UnitReport, crashes_s
from orchestrator.observed import ObservedUnit
from orchestrator.plan import Placed
from schemas import exits
from schemas.base import NodeName, StackName, UnitId
from schemas.unit import AnyUnitSpec, UnitSpec

SPEC_LABEL = "spec"
PORT_LABEL = "port"
OWNER_LABEL = "owner"
GENERATION_LABEL = "generation"
LAUNCH_LABEL = "launch"
LINK_PORT_LABEL = "link_port"
CONTROL_PORT_LABEL = "control_port"

_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    5: "SIGTRAP",
    6: "SIGABRT",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    14: "SIGALRM",
    15: "SIGTERM",
}
"""The signals that have the same number on Linux and macOS: a unit's node may be either."""
_SPEC: TypeAdapter[AnyUnitSpec] = TypeAdapter(UnitSpec)


def unit_labels(placed: Placed, owner: str, generation: int, launch: str | None) -> dict[str, str]:
    """Return the labels of a unit's record; `launch` names the launch of a group that it is a rank of."""
    labels = {
        SPEC_LABEL: _spec_text(placed.unit.spec),
        OWNER_LABEL: owner,
        GENERATION_LABEL: str(generation),
        PORT_LABEL: _text(placed.port),
        LINK_PORT_LABEL: _text(placed.link_port),
        CONTROL_PORT_LABEL: _text(placed.control_port),
        LAUNCH_LABEL: launch or "",
    }
    return {name: value for name, value in labels.items() if value}


def observed_unit(node: NodeName, report: UnitReport, now: float) -> ObservedUnit:
    """Return what a node's report says of a unit; `now` is the time by that node's clock."""
    labels = report.labels
    return ObservedUnit(
        id=UnitId(report.unit),
        node=node,
        alive=report.alive,
        phase="exited" if report.phase == "lost" else report.phase,
        spec=_spec(labels.get(SPEC_LABEL)),
        port=_number(labels.get(PORT_LABEL)),
        owner=labels.get(OWNER_LABEL),
        pid=report.pid,
        started_at=report.started_at,
        exit=exit_words(report),
        log_tail=tuple(report.log_tail.splitlines()),
        launch=labels.get(LAUNCH_LABEL),
        link_port=_number(labels.get(LINK_PORT_LABEL)),
        control_port=_number(labels.get(CONTROL_PORT_LABEL)),
        crashes_s=crashes_s(report.ends, now),
        generation=_number(labels.get(GENERATION_LABEL)),
    )


def claimed_ports(units: Iterable[UnitReport], stack: StackName) -> dict[int, tuple[StackName, UnitId]]:
    """Return the ports that living units of other stacks were started with, whether or not they listen there yet."""
    return {
        port: (StackName(unit.stack), UnitId(unit.unit))
        for unit in units
        if unit.alive and unit.stack != stack
        for label in (PORT_LABEL, LINK_PORT_LABEL, CONTROL_PORT_LABEL)
        if (port := _number(unit.labels.get(label))) is not None
    }


def exit_words(report: UnitReport) -> str | None:
    """Say how a unit ended; None for a living one."""
    if report.alive:
        return None
    if report.exit_signal is not None:
        name = _SIGNALS.get(report.exit_signal, f"signal {report.exit_signal}")
        return _explained(f"killed by {name}", exits.signal_words(name))
    if report.exit_code is None:
        return "died with its supervisor"
    return _explained(f"exit code {report.exit_code}", exits.exit_words(report.exit_code))


def _explained(fact: str, words: str | None) -> str:
    return fact if words is None else f"{fact}: {words}"


def _spec_text(spec: AnyUnitSpec) -> str:
    """Return what `_spec` reads. Without what is at its default: an earlier version does not know every field."""
    return json.dumps({"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)})


def _spec(text: str | None) -> AnyUnitSpec | None:
    try:
        return None if text is None else _SPEC.validate_json(text)
    except ValidationError:
        return None  # written by a later version; the unit is there all the same


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
