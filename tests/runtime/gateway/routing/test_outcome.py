"""The table of outcomes, row by row."""

from __future__ import annotations

from typing import get_args

import pytest

from runtime.gateway.routing.outcome import Fault, judge_error_event, judge_fault, judge_status


@pytest.mark.parametrize(
    ("status", "retry_after", "text", "effect", "then", "busy_s"),
    [
        (500, None, "", "failure", "next", 0),
        (502, None, "<html>", "failure", "next", 0),
        (504, None, "", "failure", "next", 0),
        (503, None, "", "failure", "next", 0),
        (503, "7", "", "neutral", "next", 7),
        (503, None, "server busy", "neutral", "next", 1),
        (503, "9", "model is loading", "neutral", "next", 9),
        (503, None, "model is loading", "neutral", "next", 5),
        (503, "300", '"code": "model_failed", no room while loading', "neutral", "next", 60),
        (503, "3", '"code": "model_failed"', "neutral", "next", 3),
        (429, "3", "", "neutral", "next", 3),
        (429, None, "", "neutral", "next", 1),
        (429, "99999999999999999999", "", "neutral", "next", 300),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", "", "neutral", "next", 5),
        (429, "-4", "", "neutral", "next", 5),
        (501, None, "", "neutral", "pass", 0),
        (505, None, "", "neutral", "pass", 0),
        (401, None, "", "neutral", "next", 0),
        (403, None, "", "neutral", "next", 0),
        (404, None, "the model `x` does not exist", "neutral", "next", 0),
        (404, None, "list index out of range", "failure", "next", 0),
        (400, None, "", "neutral", "pass", 0),
        (413, None, "", "neutral", "pass", 0),
        (422, None, "", "neutral", "pass", 0),
        (302, None, "", "failure", "next", 0),
        (204, None, "", "failure", "next", 0),
    ],
)
def test_statuses(status: int, retry_after: str | None, text: str, effect: str, then: str, busy_s: float) -> None:
    verdict = judge_status(status, retry_after, text)
    assert (verdict.effect, verdict.then, verdict.busy_s) == (effect, then, busy_s)


def test_an_absent_model_is_remembered_and_an_engine_error_is_not() -> None:
    assert judge_status(404, None, "model not found").absent_s > 0
    assert judge_status(404, None, "boom").absent_s == 0


@pytest.mark.parametrize("fault", get_args(Fault))
def test_after_the_commit_point_nobody_else_is_asked(fault: Fault) -> None:
    before, after = judge_fault(fault, is_committed=False), judge_fault(fault, is_committed=True)
    assert before.then == "next"
    assert before.effect == ("neutral" if fault == "connection limit" else "failure")
    assert fault == "connection limit" or after.then == "stop"


@pytest.mark.parametrize(
    ("kind", "text", "effect", "then"),
    [
        ("invalid_request_error", "too long", "neutral", "pass"),
        ("server_error", "server busy", "neutral", "next"),
        ("server_error", "still loading", "neutral", "next"),
        ("", "generation failed", "failure", "next"),
    ],
)
def test_errors_inside_streams(kind: str, text: str, effect: str, then: str) -> None:
    verdict = judge_error_event(kind, text)
    assert (verdict.effect, verdict.then) == (effect, then)
