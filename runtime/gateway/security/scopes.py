"""Pure: what each route asks of a key. The one table: a route that is not in it does not start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from schemas.keys import Scope

Need = Scope | Literal["open"]
"""What a route asks for; `open` asks for nothing, and shows no more than that the process lives or serves."""

NEEDS: Mapping[tuple[str, str], Need] = {
    ("GET", "/health"): "open",
    ("GET", "/ready"): "open",
    ("GET", "/metrics"): "metrics",
    ("POST", "/v1/chat/completions"): "inference",
    ("POST", "/v1/completions"): "inference",
    ("POST", "/v1/responses"): "inference",
    ("GET", "/v1/responses/<name:path>"): "inference",
    ("POST", "/v1/responses/<name:path>"): "inference",
    ("DELETE", "/v1/responses/<name:path>"): "inference",
    ("POST", "/v1/embeddings"): "inference",
    ("POST", "/v1/rerank"): "inference",
    ("POST", "/v2/rerank"): "inference",
    ("POST", "/rerank"): "inference",
    ("POST", "/v1/messages"): "inference",
    ("POST", "/v1/messages/count_tokens"): "inference",
    ("GET", "/v1/models"): "inference",
    ("GET", "/openapi.json"): "inference",
    ("GET", "/v1/models/<name:path>"): "inference",
    ("GET", "/"): "open",
    ("HEAD", "/"): "open",
    ("GET", "/api/version"): "open",
    ("HEAD", "/api/version"): "open",
    ("GET", "/api/tags"): "inference",
    ("HEAD", "/api/tags"): "inference",
    ("GET", "/api/ps"): "inference",
    ("POST", "/api/show"): "inference",
    ("POST", "/api/chat"): "inference",
    ("POST", "/api/generate"): "inference",
    ("POST", "/api/embed"): "inference",
    ("POST", "/api/embeddings"): "inference",
    ("POST", "/api/pull"): "inference",
    ("POST", "/api/push"): "inference",
    ("POST", "/api/create"): "inference",
    ("POST", "/api/copy"): "inference",
    ("DELETE", "/api/delete"): "inference",
    ("POST", "/api/blobs/<digest:str>"): "inference",
    ("HEAD", "/api/blobs/<digest:str>"): "inference",
    ("GET", "/admin/config"): "read",
    ("POST", "/admin/config/reload"): "admin",
    ("GET", "/admin/endpoints"): "read",
    ("POST", "/admin/endpoints/isolate"): "admin",
    ("POST", "/admin/endpoints/break"): "admin",
    ("GET", "/requests"): "read",
    ("GET", "/errors"): "read",
    ("GET", "/admin/receipts"): "read",
    ("GET", "/admin/receipts/<request_id:str>"): "read",
    ("POST", "/admin/endpoints/close"): "admin",
    ("POST", "/admin/endpoints/probe"): "admin",
}
"""By method and path, the path as the router knows it. `/ready` shows details to who may `read`."""

INCLUDED: Mapping[Scope, frozenset[Scope]] = {
    "inference": frozenset({"inference"}),
    "metrics": frozenset({"metrics"}),
    "read": frozenset({"read", "metrics"}),
    "admin": frozenset({"admin", "read", "metrics", "inference"}),
}
"""What a scope allows, itself included."""


class UnscopedRouteError(Exception):
    """A route is not in the table: nobody has decided who may use it."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{method} {path} has no scope; add it to NEEDS in runtime/gateway/security/scopes.py")


def need_of(method: str, path: str) -> Need:
    """Return what a route asks for; raises `UnscopedRouteError`."""
    try:
        return NEEDS[method, path]
    except KeyError:
        raise UnscopedRouteError(method, path) from None
