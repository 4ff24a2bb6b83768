"""I/O: `GET /openapi.json`: what the gateway can be asked, for programs."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers
from runtime.gateway.api.routes import routes_of
from runtime.gateway.services import Services

PATH = "/openapi.json"


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the route. The document is made when it is first asked for, beside the event loop, and kept."""
    making: asyncio.Task[bytes] | None = None

    def make(routes: set[tuple[str, str]]) -> bytes:
        from runtime.gateway.openapi.document import document_of

        return document_of(routes, version("orchestrate"))

    async def openapi(request: Request) -> HTTPResponse:
        nonlocal making
        if making is None:
            making = asyncio.create_task(asyncio.to_thread(make, routes_of(request.app)))
        # Who asked first may leave; the others wait for the same document.
        document = await asyncio.shield(making)
        return HTTPResponse(document, 200, headers(request, services.live), JSON)

    app.add_route(openapi, PATH, methods=["GET"], name="openapi")
