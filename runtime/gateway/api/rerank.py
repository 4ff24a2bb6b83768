"""I/O: `POST /v1/rerank`, and the paths under which Cohere's and Jina's clients look for it."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.adapters.ranking import PATH, parse_rerank
from runtime.gateway.api.relaying import ask_of, body_of, relayed, route_of
from runtime.gateway.services import Services

PATHS = {"rerank": PATH, "rerank_v2": "/v2/rerank", "rerank_bare": "/rerank"}


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def rerank(request: Request) -> HTTPResponse | None:
        body, reading = parse_rerank(await body_of(request, services))
        route = route_of(request, services.live, body.model, "reranking")
        return await relayed(request, services, ask_of(request, route, PATH, body, reading, reading.skipped))

    for name, path in PATHS.items():
        app.add_route(rerank, path, methods=["POST"], stream=True, name=name)
