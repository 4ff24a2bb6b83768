"""I/O: what schemathesis has to know of the gateway beyond its document. Loaded in schemathesis' own environment.

Names that any text could be (models, endpoints, requests) are replaced by ones that are there, in every second request,
so that models are really asked; refusals of values that do not go together are told apart from those of good values.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis

from tests.runtime.gateway.openapi.relations import is_relation

MODELS = {
    "/v1/embeddings": "embedding",
    "/api/embed": "embedding",
    "/api/embeddings": "embedding",
    "/v1/rerank": "reranking",
    "/v2/rerank": "reranking",
    "/rerank": "reranking",
}
"""The role that answers each path; all other paths are for chat."""
KNOWN = frozenset(
    f"{prefix}{role}" for prefix in ("", "model-") for role in ("chat", "embedding", "reranking", "spare")
)
LATEST = frozenset(f"{name}:latest" for name in KNOWN)
"""Names that schemathesis finds in answers; most are of another kind than the path that it tries them on."""
SPARE = "spare"
"""The endpoint that may be isolated and broken: no role needs it."""

_calls = 0


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Ask somebody who is there."""
    global _calls  # noqa: PLW0603 - hooks are functions
    _calls += 1
    body = case.body
    if not isinstance(body, dict):
        return
    if case.meta is not None and case.meta.generation.mode.is_positive:
        body = case.body = _written(body)
    if _is_name(body.get("endpoint")) and case.path.startswith("/admin/"):
        case.body = {key: value for key, value in body.items() if key not in ("role", "instance")} | {"endpoint": SPARE}
    elif _is_name(body.get("model")) and (_calls % 2 or body["model"] in KNOWN or body["model"] in LATEST):
        case.body = {**body, "model": MODELS.get(case.path, "chat")}


def _written(value: Any) -> Any:
    """Return a value with whole numbers written as such: JSON Schema takes 2.0 for one, the gateway does not."""
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_written(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 256


@schemathesis.check
def good_data_acceptance(ctx: Any, response: Any, case: Any) -> None:
    """Good values are accepted, as `positive_data_acceptance` has it, but for those that do not go together."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    try:
        error = json.loads(response.content)["error"]
    except (ValueError, LookupError, TypeError):
        error = ""
    message = error if isinstance(error, str) else str(error.get("message"))
    assert is_relation(message), f"good data was refused: {message}"
