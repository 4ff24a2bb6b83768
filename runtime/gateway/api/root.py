"""I/O: the gateway's root: Ollama's clients look there whether somebody lives, and people with a browser come by."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import headers
from runtime.gateway.services import Services

ALIVE = "Ollama is running"
"""What ollama `server/routes.go` answers, to the letter: clients compare it."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>orchestrate</title></head>
<body><h1>orchestrate</h1><p>The gateway is running.</p><ul>
<li><a href="/v1/models">Models</a></li><li><a href="/ready">Readiness</a></li><li><a href="/metrics">Metrics</a></li>
</ul></body></html>
"""


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def root(request: Request) -> HTTPResponse:
        marks = headers(request, services.live)
        marks["vary"] = ", ".join(filter(None, (marks.get("vary"), "accept")))
        if "text/html" in request.headers.getone("accept", ""):
            return HTTPResponse(_PAGE, 200, marks, "text/html; charset=utf-8")
        return HTTPResponse(ALIVE, 200, marks, "text/plain; charset=utf-8")

    app.add_route(root, "/", methods=["GET", "HEAD"], name="root")
