"""Errors have the shape that the clients of their path know."""

from __future__ import annotations

import json

import pytest

from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.dialect import ANTHROPIC, OLLAMA, OPENAI, RESPONSES, Dialect, dialect_of
from schemas.on_demand import Loading


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/v1/responses", RESPONSES),
        ("/v1/models", OPENAI),
        ("/", OPENAI),
        ("/admin/config", OPENAI),
        ("/nowhere", OPENAI),
        ("/api/chat", OLLAMA),
        ("/api/nothing", OLLAMA),
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messages/batches", ANTHROPIC),
    ],
)
def test_the_path_decides(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_openais_error_says_everything() -> None:
    error = json.loads(OPENAI.error(400, "no", code="c", param="p", request_id="r"))
    assert error == {"error": {"message": "no", "type": "invalid_request_error", "param": "p", "code": "c"}}


def test_ollamas_error_is_a_text() -> None:
    assert json.loads(OLLAMA.error(404, "größer 🚀", code="c", param="p")) == {"error": "größer 🚀"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (421, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropics_type_follows_from_the_status(status: int, kind: str) -> None:
    error = json.loads(ANTHROPIC.error(status, "no", code="c", request_id="req-1"))
    assert error == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req-1"}


@pytest.mark.parametrize("dialect", [OPENAI, OLLAMA, ANTHROPIC])
def test_how_far_a_load_is_is_told_beside_every_error(dialect: Dialect) -> None:
    loading = Loading(phase="loading", progress=0.5)
    told = json.loads(dialect.error(503, "soon", loading=loading))["loading"]
    assert told == json.loads(loading.model_dump_json())
    raw = ApiError(503, "soon", loading=loading).body()
    again = json.loads(dialect.translated(503, raw, "r"))
    assert again["loading"] == told
    assert "soon" in json.dumps(again["error"])


def test_an_error_in_openais_shape_is_said_anew() -> None:
    raw = ApiError(429, "busy", code="queue_full").body()
    assert OPENAI.translated(429, raw) is raw
    assert json.loads(OLLAMA.translated(429, raw)) == {"error": "busy"}
    said = json.loads(ANTHROPIC.translated(429, raw, "r"))
    assert said == {"type": "error", "error": {"type": "rate_limit_error", "message": "busy"}, "request_id": "r"}
