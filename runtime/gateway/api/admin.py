"""I/O: the admin API: what the gateway serves, and reading the files now. Who may use it says `security.scopes`."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers
from runtime.gateway.live import config_report
from runtime.gateway.services import Services


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    def report(request: Request) -> HTTPResponse:
        found = config_report(services.live, services.pool, services.holds.held, services.queues.depths, services.now())
        return HTTPResponse(found.model_dump_json().encode(), 200, headers(request, services.live), JSON)

    async def config(request: Request) -> HTTPResponse:
        return report(request)

    async def reload(request: Request) -> HTTPResponse:
        await services.reloader.reload()
        return report(request)

    app.add_route(config, "/admin/config", methods=["GET"], name="config")
    app.add_route(reload, "/admin/config/reload", methods=["POST"], name="reload")
