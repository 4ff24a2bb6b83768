"""What a process of a later version tells is understood by an earlier one, with all its parts."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from orchestrator.watching.report import WatcherReport
from schemas.admin import ConfigReport, EndpointsReport
from schemas.messages import WorkerReadiness, WorkerStatus
from schemas.receipt import Receipt, Receipts

REPORTS: list[type[BaseModel]] = [
    WorkerReadiness,
    WorkerStatus,
    ConfigReport,
    EndpointsReport,
    Receipt,
    Receipts,
    WatcherReport,
]


def parts(annotation: Any) -> set[type[BaseModel]]:
    """Return the models that a field's type is made of, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(parts(field.annotation) for field in fields))
    return set().union(*(parts(inner) for inner in get_args(annotation)))


@pytest.mark.parametrize("part", sorted({p for r in REPORTS for p in parts(r)}, key=lambda p: p.__name__))
def test_no_part_of_a_report_refuses_what_it_does_not_know(part: type[BaseModel]) -> None:
    assert part.model_config.get("extra") == "ignore"


def test_a_later_worker_is_understood() -> None:
    told = {
        "model": "m",
        "is_ready": True,
        "phase": "ready",
        "progress": None,
        "mood": "good",
        "canary": {"outcome": "passed", "certainty": 1},
    }
    readiness = WorkerReadiness.from_json(json.dumps(told))
    assert readiness.takes_requests
    assert readiness.canary is not None
