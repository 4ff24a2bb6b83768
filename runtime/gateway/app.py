"""I/O: the Sanic application: routes, limits, and errors in the shape of the path. Wiring only."""

from __future__ import annotations

import itertools
import logging
from http import HTTPStatus
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.compat import Header
from sanic.config import Config
from sanic.exceptions import BadRequest, RequestCancelled, SanicException
from sanic.handlers import ErrorHandler
from sanic.headers import _HTTP1_STATUSLINES
from sanic.helpers import STATUS_CODES
from sanic.models.protocol_types import TransportProtocol

from runtime.gateway.api import (
    admin,
    anthropic,
    embeddings,
    endpoints,
    health,
    history,
    ollama,
    openai,
    openapi,
    receipts,
    rerank,
    responses,
    root,
)
from runtime.gateway.api.answers import error_answer, read_body
from runtime.gateway.api.routes import methods_of
from runtime.gateway.errors import ApiError
from runtime.gateway.framing import find_fault
from runtime.gateway.live import Live
from runtime.gateway.security.admission import GuardedApp
from runtime.gateway.security.guard import Guard, MisdirectedError
from runtime.gateway.security.pages import answer_preflight
from runtime.gateway.services import Services

log = logging.getLogger(__name__)

NEVER_S = 30 * 24 * 3600
"""Sanic answers 503 after its response timeout, whatever the handler does; the gateway has timers of its own."""
MOST_IGNORED = 64 * 1024
"""Bytes of a body that a request may have whose handler reads none."""
MOST_DISCARDED = 64 * 1024 * 1024
"""Bytes of a refused body that are read so that its sender gets to see the answer."""

CLIENT_CLOSED_REQUEST = 499

# Sanic 25.12 has no words for this one, and wrote all its status lines when it was imported.
STATUS_CODES.setdefault(HTTPStatus.MISDIRECTED_REQUEST, b"Misdirected Request")
_HTTP1_STATUSLINES[HTTPStatus.MISDIRECTED_REQUEST] = b"HTTP/1.1 421 Misdirected Request\r\n"

_numbers = itertools.count()


class MalformedHeadError(BadRequest):
    """The head of a request can be read in more than one way. Its text is ours and may be shown."""


class StrictRequest(Request):
    """A request whose head was read strictly, before anything is routed by it. The connection ends with the refusal."""

    def __init__(
        self,
        url_bytes: bytes,
        headers: Header,
        version: str,
        method: str,
        transport: TransportProtocol,
        app: Sanic[Any, Any],
        head: bytes = b"",
        stream_id: int = 0,
    ) -> None:
        fault = find_fault(head) if head else None
        if fault is not None:
            raise MalformedHeadError(fault)
        # Sanic makes a request without a head only to report an error of its own; the URL may be what is wrong.
        if head:
            app.ctx.guard.check_host(headers.getone("host", None))
        if "transfer-encoding" in headers:
            # Sanic knows it in lower case and without blanks only; that it says nothing else was seen above.
            headers["transfer-encoding"] = "chunked"
        super().__init__(url_bytes if head else b"*", headers, version, method, transport, app, head, stream_id)

    async def receive_body(self) -> None:
        """Read away the body of a request whose handler reads none, which Sanic would keep; raises `ApiError`."""
        await read_body(self, MOST_IGNORED)


class ShapedErrors(ErrorHandler):
    """Answers every error in the shape that the clients of its path know; Sanic's own pages are never shown."""

    def __init__(self, live: Live, guard: Guard) -> None:
        super().__init__()
        self._live = live
        self._guard = guard

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        """Turn an exception into an answer."""
        if isinstance(exception, ApiError):
            return error_answer(request, self._live, exception)
        if isinstance(exception, RequestCancelled):
            # The client left; Sanic asks for an answer that nobody will read.
            return HTTPResponse(status=CLIENT_CLOSED_REQUEST)
        if not isinstance(exception, SanicException):
            log.error("a handler failed: path=%s", request.path, exc_info=exception)
            return error_answer(request, self._live, ApiError(500, "Internal error.", code="internal_error"))
        if exception.status_code == HTTPStatus.METHOD_NOT_ALLOWED and request.method == "OPTIONS":
            preflight = answer_preflight(request, self._guard)
            if preflight is not None:
                return preflight
        answer = error_answer(request, self._live, _from_sanic(request, exception))
        if exception.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer.headers["allow"] = ", ".join(methods_of(request.app, request.path))
        return answer


def create_app(services: Services) -> Sanic[Any, Any]:
    """Build the application around a gateway's services.

    Raises `security.scopes.UnscopedRouteError` for a route about which nobody has decided who may use it.
    """
    app = GuardedApp(
        f"gateway-{next(_numbers)}",
        services.guard,
        config=_config(),
        request_class=StrictRequest,
        error_handler=ShapedErrors(services.live, services.guard),
        configure_logging=False,
    )
    openai.register(app, services)
    embeddings.register(app, services)
    rerank.register(app, services)
    responses.register(app, services)
    anthropic.register(app, services)
    ollama.register(app, services)
    root.register(app, services)
    admin.register(app, services)
    receipts.register(app, services)
    history.register(app, services)
    endpoints.register(app, services)
    health.register(app, services)
    openapi.register(app, services)
    app.require_scopes()
    return app


def _config() -> Config:
    config = Config(env_prefix=None)
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        KEEP_ALIVE_TIMEOUT=75,
        MOTD=False,
        REQUEST_MAX_HEADER_SIZE=16_384,
        REQUEST_MAX_SIZE=MOST_DISCARDED,
        REQUEST_TIMEOUT=30,
        RESPONSE_TIMEOUT=NEVER_S,
    )
    return config


def _from_sanic(request: Request, exception: SanicException) -> ApiError:
    """Describe an error of Sanic in our own words: its texts repeat what the client sent."""
    status = exception.status_code or 500
    match status:
        case 404:
            return ApiError(404, "There is no such path here; GET /openapi.json describes all.", code="unknown_url")
        case 405:
            return ApiError(405, f"The method {request.method} is not allowed here.", code="method_not_allowed")
        case 400:
            fault = str(exception) if isinstance(exception, MalformedHeadError) else ""
            return ApiError(400, fault or "The request is malformed.", code="bad_request")
        case 421:
            fault = str(exception) if isinstance(exception, MisdirectedError) else ""
            return ApiError(421, fault or "Misdirected request.", code="unknown_host")
        case 408:
            return ApiError(408, "The request took too long to arrive.", code="request_timeout")
        case 413:
            return ApiError(413, "The request is too large.", code="request_too_large")
        case _:
            return ApiError(status, f"{HTTPStatus(status).phrase}.", code="bad_request" if status < 500 else None)
