"""I/O: `POST /v1/embeddings`, OpenAI's API for vectors of texts."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.adapters.vectors import PATH, parse_embeddings, reading_of
from runtime.gateway.api.relaying import ask_of, body_of, relayed, route_of
from runtime.gateway.services import Services


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the route."""

    async def embeddings(request: Request) -> HTTPResponse | None:
        body = parse_embeddings(await body_of(request, services))
        route = route_of(request, services.live, body.model, "embedding")
        return await relayed(request, services, ask_of(request, route, PATH, body, reading_of(body, route.dimensions)))

    app.add_route(embeddings, PATH, methods=["POST"], stream=True, name="embeddings")
