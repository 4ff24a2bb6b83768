"""The table of outcomes, row by row."""

from __future__ import annotations

from typing import get_args

import pytest

from runtime.gateway.routing.outcome import (
    ABSENT,
    ABSENT_S,
    COLD,
    LOADING,
    MODEL_FAILED,
    REFUSED,
    SILENT,
    UNHEARD,
    Fault,
    judge_error_event,
    judge_fault,
    judge_status,
)

STOCK = '{"error": "list index out of range"}'
"""What `mlx_lm.server` answers, with status 404, when its engine fails."""


@pytest.mark.parametrize(
    ("status", "retry_after", "text", "label", "effect", "then", "busy_s"),
    [
        (500, None, "", "server error", "failure", "next", 0),
        (500, "7", "busy", "server error", "failure", "next", 0),
        (502, None, "<html>", "server error", "failure", "next", 0),
        (504, None, "", "server error", "failure", "next", 0),
        (507, None, "", "server error", "failure", "next", 0),
        (503, None, "", "server error", "failure", "next", 0),
        (503, "7", "", "busy", "neutral", "next", 7),
        (503, "0", "", "busy", "neutral", "next", 0),
        (503, None, "server busy", "busy", "neutral", "next", 1),
        (503, None, "overloaded", "busy", "neutral", "next", 1),
        (503, None, "the queue is full", "busy", "neutral", "next", 1),
        (503, None, "too many requests", "busy", "neutral", "next", 1),
        (503, None, "at capacity", "busy", "neutral", "next", 1),
        (503, "9", "server busy", "busy", "neutral", "next", 9),
        (503, "9", "model is loading", LOADING, "neutral", "next", 9),
        (503, None, "model is loading", LOADING, "neutral", "next", 5),
        (503, "9", '"code": "model_cold"', COLD, "neutral", "next", 0),
        (503, "300", '"code": "model_failed", no room while loading', MODEL_FAILED, "neutral", "next", 60),
        (503, "3", '"code": "model_failed"', MODEL_FAILED, "neutral", "next", 3),
        (503, None, '"code": "model_failed"', MODEL_FAILED, "neutral", "next", 5),
        (429, "3", "", "busy", "neutral", "next", 3),
        (429, " 3 ", "", "busy", "neutral", "next", 3),
        (429, None, "", "busy", "neutral", "next", 1),
        (429, "", "", "busy", "neutral", "next", 1),
        (429, None, "model is loading", "busy", "neutral", "next", 1),
        (429, "99999999999999999999", "", "busy", "neutral", "next", 300),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", "", "busy", "neutral", "next", 5),
        (429, "-4", "", "busy", "neutral", "next", 5),
        (429, "\u0663", "", "busy", "neutral", "next", 5),
        (501, None, "", "not supported", "neutral", "pass", 0),
        (505, None, "", "not supported", "neutral", "pass", 0),
        (401, None, "", REFUSED, "neutral", "next", 0),
        (403, None, "", REFUSED, "neutral", "next", 0),
        (404, None, "the model `x` does not exist", ABSENT, "neutral", "next", 0),
        (404, None, '{"error":{"message":"gone"}}', ABSENT, "neutral", "next", 0),
        (404, None, "", ABSENT, "neutral", "next", 0),
        (404, None, '{"error": "model \'x\' not found, try pulling it first"}', ABSENT, "neutral", "next", 0),
        (404, None, '{"error": "not found"}', ABSENT, "neutral", "next", 0),
        (404, None, '{"error": "it does not exist"}', ABSENT, "neutral", "next", 0),
        (404, None, STOCK, "engine error", "failure", "next", 0),
        (404, None, ' {\n "error" : "boom"}', "engine error", "failure", "next", 0),
        (404, None, '{"detail": {"error": "boom"}}', ABSENT, "neutral", "next", 0),
        (404, None, "404 page not found", ABSENT, "neutral", "next", 0),
        (400, None, '{"error":{"code":"model_not_found"}}', ABSENT, "neutral", "next", 0),
        (400, None, "invalid model: x", ABSENT, "neutral", "next", 0),
        (422, None, "model_not_found", "client error", "neutral", "pass", 0),
        (424, None, '{"error":"cuda","error_type":"backend"}', "server error", "failure", "next", 0),
        (424, None, "", "client error", "neutral", "pass", 0),
        (425, None, '"error_type"', "client error", "neutral", "pass", 0),
        (400, None, "context_length_exceeded", "context overflow", "neutral", "pass", 0),
        (413, None, "context_length_exceeded", "context overflow", "neutral", "pass", 0),
        (422, None, "context_length_exceeded", "context overflow", "neutral", "pass", 0),
        (500, None, "context_length_exceeded", "context overflow", "neutral", "pass", 0),
        (403, None, "context_length_exceeded", REFUSED, "neutral", "next", 0),
        (501, None, "context_length_exceeded", "not supported", "neutral", "pass", 0),
        (400, None, "", "client error", "neutral", "pass", 0),
        (408, None, "", "client error", "neutral", "pass", 0),
        (413, None, "", "client error", "neutral", "pass", 0),
        (422, None, "busy loading", "client error", "neutral", "pass", 0),
        (499, "5", "", "client error", "neutral", "pass", 0),
        (302, None, "", "bad answer", "failure", "next", 0),
        (204, None, "", "bad answer", "failure", "next", 0),
        (100, None, "", "bad answer", "failure", "next", 0),
    ],
)
def test_statuses(
    status: int, retry_after: str | None, text: str, label: str, effect: str, then: str, busy_s: float
) -> None:
    verdict = judge_status(status, retry_after, text)
    assert (verdict.label, verdict.effect, verdict.then, verdict.busy_s) == (label, effect, then, busy_s)
    assert verdict.absent_s == (ABSENT_S if label in {ABSENT, REFUSED} else 0)


def test_only_who_will_answer_soon_is_passing() -> None:
    passing = {text: judge_status(503, None, text).is_passing for text in ("loading", "busy", "model_cold", "", "x")}
    assert passing == {"loading": True, "busy": True, "model_cold": False, "": False, "x": False}


@pytest.mark.parametrize("fault", get_args(Fault))
def test_after_the_commit_point_nobody_else_is_asked(fault: Fault) -> None:
    before, after = judge_fault(fault, is_committed=False), judge_fault(fault, is_committed=True)
    assert before.then == "next"
    assert before.effect == ("neutral" if fault == "connection limit" else "failure")
    assert fault == "connection limit" or (after.then, after.effect) == ("stop", "failure")
    assert before.label == after.label == fault


def test_what_is_known_of_an_endpoint_that_broke_off() -> None:
    assert set(SILENT) == {"no first content", "stalled"}
    heard = set(get_args(Fault)) - UNHEARD
    assert heard == {"bad answer", "ended early"}, "these two have said something"


@pytest.mark.parametrize(
    ("kind", "text", "label", "effect", "then", "busy_s"),
    [
        ("invalid_request_error", "too long, the server is busy", "client error", "neutral", "pass", 0),
        ("server_error", "server busy", "busy", "neutral", "next", 1),
        ("server_error", "still loading, busy", LOADING, "neutral", "next", 5),
        ("", "generation failed", "server error", "failure", "next", 0),
        ("server_error", "context_length_exceeded", "context overflow", "neutral", "pass", 0),
        ("context_length_exceeded", "too long", "context overflow", "neutral", "pass", 0),
    ],
)
def test_errors_inside_streams(kind: str, text: str, label: str, effect: str, then: str, busy_s: float) -> None:
    verdict = judge_error_event(kind, text)
    assert (verdict.label, verdict.effect, verdict.then, verdict.busy_s) == (label, effect, then, busy_s)
