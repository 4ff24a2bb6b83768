"""What is written into a unit's record is read again as what it was, and says no more than it must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.expand import DesiredUnit
from orchestrator.node.reports import UnitReport
from orchestrator.plan import Placed
from orchestrator.records import SPEC_LABEL, observed_unit, unit_labels
from schemas.base import NodeName
from schemas.unit import AnyUnitSpec, EngineSpec, GatewaySpec, GroupSpec, ModelSpec, WatcherSpec, WorkerSpec, unit_id

MODEL = ModelSpec(name="m", source="hf:a/b")
WORKER: dict[str, Any] = {"node": "a", "service": "s", "replica": 0, "rank": 0, "model": MODEL}
SPECS: list[AnyUnitSpec] = [
    WorkerSpec.model_validate({**WORKER, "max_batch": 1, "max_waiting": 2}),
    WorkerSpec.model_validate(
        {
            **WORKER,
            "max_batch": 1,
            "max_waiting": 2,
            "draft": MODEL,
            "idle_stop_s": 5.0,
            "group": GroupSpec(backend="ring", strategy="pipeline", split=(1, 2), nodes=(NodeName("a"), NodeName("b"))),
        }
    ),
    EngineSpec.model_validate(
        {
            "node": "a",
            "service": "s",
            "replica": 1,
            "engine": "command",
            "model": MODEL,
            "max_batch": 1,
            "args": {"x": 1, "y": 0.5, "z": "t", "w": True},
        }
    ),
    GatewaySpec(node=NodeName("a"), bind="::", port=8000),
    WatcherSpec(node=NodeName("a")),
]


def labels_of(spec: AnyUnitSpec) -> dict[str, str]:
    unit = DesiredUnit(spec, unit_id(spec), "auto", None, ready_timeout_s=1.0, drain_s=1.0)
    return unit_labels(Placed(unit, None), "/conf", 1, None)


def read_from(labels: dict[str, str]) -> AnyUnitSpec | None:
    report = UnitReport("lab", "u", True, "running", 1, True, labels, 0.0, None, None, None, "")
    return observed_unit(NodeName("a"), report, 0.0).spec


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.slot))
def test_a_specification_is_read_as_it_was_written_now_and_in_full_before(spec: AnyUnitSpec) -> None:
    for labels in (labels_of(spec), {SPEC_LABEL: spec.model_dump_json()}):
        found = read_from(labels)
        assert found == spec
        assert found is not None
        assert unit_id(found) == unit_id(spec)


def test_a_field_at_its_default_is_not_written() -> None:
    written = json.loads(labels_of(SPECS[0])[SPEC_LABEL])
    assert set(written) == {*WORKER, "kind", "max_batch", "max_waiting"}
