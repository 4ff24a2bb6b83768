"""I/O: whether the process lives, whether it can serve, and its metrics."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import headers, json_answer
from runtime.gateway.live import readiness
from runtime.gateway.security.callers import caller_of
from runtime.gateway.services import Services


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def health(request: Request) -> HTTPResponse:
        return json_answer(request, services.live, {"status": "ok"})

    async def ready(request: Request) -> HTTPResponse:
        is_ready, report = readiness(services.live, services.pool)
        if not caller_of(request).may("read"):
            report = {"ready": is_ready}
        return json_answer(request, services.live, report, 200 if is_ready else 503)

    async def metrics(request: Request) -> HTTPResponse:
        # Prometheus' library is not for a start that nobody scrapes yet.
        from runtime.gateway.observe.exposition import CONTENT_TYPE, text_of

        text = text_of(services.metrics.families())
        return HTTPResponse(text, 200, headers(request, services.live), CONTENT_TYPE)

    app.add_route(health, "/health", methods=["GET"], name="health")
    app.add_route(ready, "/ready", methods=["GET"], name="ready")
    app.add_route(metrics, "/metrics", methods=["GET"], name="metrics")
