"""I/O: the OpenAI API: chat and text completions, and the models list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import PurePath
from typing import Any, cast
from urllib.parse import unquote

from sanic import Request, Sanic
from sanic.exceptions import RequestCancelled
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, Answer, headers, json_answer, read_body, request_id
from runtime.gateway.attempt import Ask, ClientLeftError
from runtime.gateway.bodies import Body, parse_chat, parse_completion
from runtime.gateway.errors import ApiError, clean
from runtime.gateway.live import Live
from runtime.gateway.routing.table import MIB, Card, RoutingTable
from runtime.gateway.services import Services
from schemas.prefer import HEADER as PREFER_HEADER
from schemas.prefer import wait_s

STALL_S = 60.0
"""How long a client may leave a full buffer unread."""
BUFFERED = 16 * 1024
"""Bytes in the transport below which a write cannot wait: Sanic's lower limit."""
DEFAULT_BODY_LIMIT = 20 * MIB
"""The largest body while there is no table."""

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes. The handlers read bodies themselves: the limit is hot, and a slow upload has a deadline."""
    chat = _completions(services, "/v1/chat/completions", parse_chat)
    text = _completions(services, "/v1/completions", parse_completion)
    app.add_route(chat, "/v1/chat/completions", methods=["POST"], stream=True, name="chat")
    app.add_route(text, "/v1/completions", methods=["POST"], stream=True, name="completions")

    async def models(request: Request) -> HTTPResponse:
        table = _table(services.live)
        listed = [_model(card, services.live) for card in table.cards]
        return json_answer(request, services.live, {"object": "list", "data": listed})

    async def model(request: Request, name: str) -> HTTPResponse:
        # Clients may or may not encode the slashes of an id; the router hands the rest of the path on as it came.
        wanted = unquote(name)
        card = next((card for card in _table(services.live).cards if card.id == wanted), None)
        if card is None:
            raise _not_found(wanted)
        return json_answer(request, services.live, _model(card, services.live))

    app.add_route(models, "/v1/models", methods=["GET"], name="models")
    app.add_route(model, "/v1/models/<name:path>", methods=["GET"], name="model")


def _completions(services: Services, path: str, parse: Callable[[bytes], Body]) -> Handler:
    live, relay = services.live, services.relay

    async def handle(request: Request) -> HTTPResponse | None:
        table = live.table
        body = parse(await read_body(request, table.body_limit if table else DEFAULT_BODY_LIMIT))
        route = _table(live).routes.get(body.model)
        if route is None:
            raise _not_found(body.model)
        client = _StreamClient(request, live)
        try:
            wish_s = wait_s(request.headers.getone(PREFER_HEADER, None))
            answer = await relay.relay(Ask(route, path, body, request_id(request), wait_s=wish_s), client)
        except ClientLeftError:
            cast(asyncio.Transport, request.transport).abort()
            raise RequestCancelled from None
        if answer is None:
            return None
        marks = headers(request, live, endpoint=answer.endpoint, attempts=answer.attempts, fallback=answer.fallback)
        if answer.retry_after_s is not None:
            marks["retry-after"] = str(answer.retry_after_s)
        return Answer(answer.body, answer.status, marks, JSON)

    return handle


class _StreamClient:
    """The client's side of a stream, over Sanic."""

    def __init__(self, request: Request, live: Live) -> None:
        self._request = request
        self._live = live
        self._transport = cast(asyncio.Transport, request.transport)
        self._response: HTTPResponse | None = None

    @property
    def is_started(self) -> bool:
        return self._response is not None

    async def start(self, endpoint: str, attempts: int, fallback: str) -> None:
        marks = headers(self._request, self._live, endpoint=endpoint, attempts=attempts, fallback=fallback)
        marks["cache-control"] = "no-store"
        # Sanic sends the headers together with the first bytes.
        self._response = Answer(None, 200, marks, "text/event-stream")
        await self._request.respond(self._response)

    async def send(self, data: bytes) -> None:
        if self._response is None or not data:
            return
        if self._transport.get_write_buffer_size() <= BUFFERED:
            await self._response.send(data)
            return
        try:
            async with asyncio.timeout(STALL_S):
                await self._response.send(data)
        except TimeoutError:
            raise ClientLeftError from None


def _table(live: Live) -> RoutingTable:
    """Return the table; raises `ApiError` with status 503 while there was no good configuration yet."""
    if live.table is None:
        named = ((PurePath(problem.file).name, clean(problem.message)) for problem in live.problems)
        reason = "; ".join(f"{file}: {message}" for file, message in named) or "it is being read"
        message = f"The gateway has no usable configuration: {reason}"
        raise ApiError(503, message, code="configuration_invalid", retry_after_s=1.0)
    return live.table


def _not_found(model: str) -> ApiError:
    message = f"The model '{model}' does not exist; GET /v1/models lists what does."
    return ApiError(404, message, code="model_not_found", param="model")


def _model(card: Card, live: Live) -> dict[str, object]:
    created = int(live.started_at)
    return {"id": card.id, "object": "model", "created": created, "owned_by": card.owner, "kind": card.kind}
