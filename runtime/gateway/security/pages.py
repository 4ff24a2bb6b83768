"""I/O: the answer to a browser that asks whether a page of another site may send a request."""

from __future__ import annotations

from sanic import HTTPResponse, Request

from runtime.gateway.security.guard import Guard

ALLOWED_HEADERS = "authorization, content-type, prefer, x-api-key, x-request-id"
ALLOWED_METHODS = "GET, POST"
KEPT_S = 600
"""How long the browser need not ask again."""


def answer_preflight(request: Request, guard: Guard) -> HTTPResponse | None:
    """Return the answer for a listed page; None where the request is none of this kind, or the page is not listed."""
    origin = request.headers.getone("origin", None)
    if origin is None or "access-control-request-method" not in request.headers or not guard.is_listed(origin):
        return None
    return HTTPResponse(
        status=204,
        headers={
            "access-control-allow-origin": origin,
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": ALLOWED_HEADERS,
            "access-control-max-age": str(KEPT_S),
            "vary": "origin",
        },
    )
