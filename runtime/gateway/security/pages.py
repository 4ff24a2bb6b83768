"""I/O: the answer to a browser that asks whether a page of another site may send a request."""

from __future__ import annotations

import re

from sanic import HTTPResponse, Request

from runtime.gateway.security.guard import Guard

ALLOWED_HEADERS = "authorization, content-type, prefer, x-api-key, x-request-id"
"""For who asks for none in particular."""
ALLOWED_METHODS = "GET, POST"
KEPT_S = 600
"""How long the browser need not ask again."""

_NAMES = re.compile(r"[a-z0-9_-]+(?: *, *[a-z0-9_-]+)*")


def answer_preflight(request: Request, guard: Guard) -> HTTPResponse | None:
    """Return the answer for a listed page; None where the request is none of this kind, or the page is not listed."""
    origin = request.headers.getone("origin", None)
    if origin is None or "access-control-request-method" not in request.headers or not guard.is_listed(origin):
        return None
    # Clients of OpenAI and Anthropic send a dozen of their own. What is not known here goes nowhere.
    asked = request.headers.getone("access-control-request-headers", "")
    return HTTPResponse(
        status=204,
        headers={
            "access-control-allow-origin": origin,
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": asked if _NAMES.fullmatch(asked) else ALLOWED_HEADERS,
            "access-control-max-age": str(KEPT_S),
            "vary": "origin, access-control-request-headers",
        },
    )
