"""I/O: what the paths that models answer have in common: body, route, relay, and the answer to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import cast

from sanic import Request
from sanic.exceptions import RequestCancelled
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, Answer, headers, read_body, request_id
from runtime.gateway.api.rehearsal import HEADER as REHEARSAL
from runtime.gateway.api.rehearsal import failing_of
from runtime.gateway.attempt import Ask, ClientLeftError, Notes, Reading
from runtime.gateway.bodies import Body
from runtime.gateway.errors import ApiError, clean
from runtime.gateway.live import Live
from runtime.gateway.protocols.dialect import OLLAMA, OPENAI, Dialect, dialect_of
from runtime.gateway.relay import Answer as Carried
from runtime.gateway.routing.table import MIB, Route, RoutingTable
from runtime.gateway.security.callers import may_name
from runtime.gateway.services import Services
from schemas.model import ModelKind
from schemas.prefer import HEADER as PREFER_HEADER
from schemas.prefer import wait_s

STALL_S = 60.0
"""How long a client may leave a full buffer unread."""
BUFFERED = 16 * 1024
"""Bytes in the transport below which a write cannot wait: Sanic's lower limit."""
DEFAULT_BODY_LIMIT = 20 * MIB
"""The largest body while there is no table."""


async def body_of(request: Request, services: Services) -> bytes:
    """Return a request's body; raises `ApiError`. Handlers read it themselves: the limit is hot."""
    table = services.live.table
    return await read_body(request, table.body_limit if table else DEFAULT_BODY_LIMIT)


def route_of(request: Request, live: Live, model: str, kind: ModelKind) -> Route:
    """Return who serves a name.

    Raises `ApiError` where nobody does, where the request's key may not use it, which looks the same, or where it is
    for another kind of request.
    """
    route = table_of(live).routes.get(model)
    if route is None or not may_name(request, model):
        raise not_found(model, dialect_of(request.path))
    if route.kind != kind:
        path = dialect_of(request.path).paths[route.kind]
        message = f"'{model}' is for {route.kind}, not for {kind}: send such requests to POST {path}."
        raise ApiError(400, message, code="wrong_kind", param="model")
    return route


def ask_of(
    request: Request,
    route: Route,
    path: str,
    body: Body,
    reading: Reading | None = None,
    skipped: Callable[[], bytes] | None = None,
) -> Ask:
    """Return what the relay is asked; `path` is that at the endpoint."""
    wish_s = wait_s(request.headers.getone(PREFER_HEADER, None))
    notes = request.ctx.notes = Notes()
    named = request_id(request)
    return Ask(
        route,
        path,
        body,
        named,
        client_path=request.path,
        wait_s=wish_s,
        reading=reading,
        skipped=skipped,
        notes=notes,
    )


async def relayed(request: Request, services: Services, ask: Ask) -> HTTPResponse | None:
    """Answer a client of OpenAI's API through the relay; None where the answer was streamed."""
    answer = await carried(request, services, ask, StreamClient(request, services.live))
    if answer is None:
        return None
    return Answer(answer.body, answer.status, marks_of(request, services.live, answer), JSON)


async def carried(request: Request, services: Services, ask: Ask, client: StreamClient) -> Carried | None:
    """Let the relay answer a client; return what it says as a whole, or None where it was streamed."""
    if REHEARSAL in request.headers:
        ask = replace(ask, failing=failing_of(request, services, ask.route))
    try:
        return await services.relay.relay(ask, client)
    except ClientLeftError:
        cast(asyncio.Transport, request.transport).abort()
        raise RequestCancelled from None


def marks_of(request: Request, live: Live, answer: Carried) -> dict[str, str]:
    """Return the headers of an answer that the relay gave as a whole."""
    marks = headers(request, live, endpoint=answer.endpoint, attempts=answer.attempts, fallback=answer.fallback)
    if answer.retry_after_s is not None:
        marks["retry-after"] = str(answer.retry_after_s)
    return marks


class StreamClient:
    """The client's side of a stream, over Sanic."""

    def __init__(self, request: Request, live: Live, content_type: str = "text/event-stream") -> None:
        self._request = request
        self._live = live
        self._content_type = content_type
        self._more_marks: Mapping[str, str] = {}
        """Headers beside those that all streams have."""
        self._transport = cast(asyncio.Transport, request.transport)
        self._response: HTTPResponse | None = None

    @property
    def is_started(self) -> bool:
        return self._response is not None

    async def start(self, endpoint: str, attempts: int, fallback: str) -> None:
        marks = headers(self._request, self._live, endpoint=endpoint, attempts=attempts, fallback=fallback)
        marks["cache-control"] = "no-store"
        marks.update(self._more_marks)
        # Sanic sends the headers together with the first bytes.
        self._response = Answer(None, 200, marks, self._content_type)
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


def table_of(live: Live) -> RoutingTable:
    """Return the table; raises `ApiError` with status 503 while there was no good configuration yet."""
    if live.table is None:
        named = ((PurePath(problem.file).name, clean(problem.message)) for problem in live.problems)
        reason = "; ".join(f"{file}: {message}" for file, message in named) or "it is being read"
        message = f"The gateway has no usable configuration: {reason}"
        raise ApiError(503, message, code="configuration_invalid", retry_after_s=1.0)
    return live.table


def not_found(model: str, dialect: Dialect = OPENAI) -> ApiError:
    """Return the error for a name that nobody serves."""
    # Ollama's clients look for its words.
    absent = f"model '{model}' not found" if dialect is OLLAMA else f"The model '{model}' does not exist"
    message = f"{absent}, or is not for this key; GET {dialect.models_path} lists what is there."
    return ApiError(404, message, code="model_not_found", param="model")
