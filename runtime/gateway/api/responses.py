"""I/O: `POST /v1/responses`, OpenAI's Responses API, stateless: what needs a response that was kept is refused."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.relaying import ask_of, body_of, route_of
from runtime.gateway.api.translating import translated
from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.responses.answer import Responses
from runtime.gateway.protocols.responses.request import parse_response
from runtime.gateway.services import Services

PATH = "/v1/responses"
_KEPT = "/v1/responses/<name:path>"
_CHAT = "/v1/chat/completions"

# Unique among the processes that ever run here.
_PREFIX = f"resp_{secrets.token_hex(12)}"
_numbers = itertools.count(1)


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def create(request: Request) -> HTTPResponse | None:
        raw = await body_of(request, services)
        body, head = parse_response(raw, f"{_PREFIX}{next(_numbers):08x}", int(time.time()))
        route = route_of(request, services.live, body.model, "chat")
        ask = ask_of(request, route, _CHAT, body)
        return await translated(request, services, ask, Responses(head, time.time))

    async def kept(_request: Request, **_named: str) -> HTTPResponse | None:
        message = "There is no such response: they are not kept here, so none can be fetched, deleted or continued."
        raise ApiError(404, message, code="response_not_found")

    app.add_route(create, PATH, methods=["POST"], stream=True, name="responses")
    app.add_route(kept, _KEPT, methods=["GET", "POST", "DELETE"], name="kept_responses")
