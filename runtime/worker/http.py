"""I/O: the worker's HTTP surface, on Sanic: parse, wait for the engine, write."""

import asyncio
import hmac
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import json as json_response

from runtime.worker import openai
from runtime.worker.answer import Answer
from runtime.worker.body import parse_json
from runtime.worker.engine import Engine
from runtime.worker.errors import GenerationError, RequestError, UnavailableError, error_body, kind_of
from runtime.worker.openai import Envelope, EventStream, Kind, Usage
from runtime.worker.request import Request as Wanted
from runtime.worker.request import parse_chat, parse_completion
from runtime.worker.settings import Settings

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 1024 * 1024
"""More than a gateway lets pass by default."""
MOST_DISCARDED = 2 * MAX_BODY_BYTES
"""Bytes of a refused body that are read so that its sender gets to see the answer."""
BODY_TIMEOUT_S = 120.0
"""How long a body may take to arrive."""
SEND_TIMEOUT_S = 60.0
"""A client that takes none of its stream for this long has left."""
HEADER_TIMEOUT_S = 60
LINGER_S = 3.0
"""What a client gets, after generation has ended, to take the rest of its answer."""
NEVER_S = 10 * 365 * 86400
"""Sanic cuts answers that take longer than its RESPONSE_TIMEOUT; every timer of an answer is our own."""

App = Sanic[Any, Any]
_Parser = Callable[[dict[str, Any], str], Wanted]


def build_app(settings: Settings, engine: Engine) -> App:
    """Build the application; it serves from the first moment, also while the model loads."""
    app: App = Sanic("worker", configure_logging=False)
    app.config.update(
        ACCESS_LOG=False,
        REQUEST_MAX_SIZE=MOST_DISCARDED,
        REQUEST_TIMEOUT=HEADER_TIMEOUT_S,
        RESPONSE_TIMEOUT=NEVER_S,
        KEEP_ALIVE_TIMEOUT=120,
    )
    _add_guard(app, settings.token)
    _add_generation(app, settings.name, engine)
    _add_reports(app, settings.name, engine)
    app.error_handler.add(Exception, _answer_error)
    return app


def _add_guard(app: App, token: str | None) -> None:
    expected = f"Bearer {token}".encode()

    @app.on_request
    async def check_token(request: Request) -> HTTPResponse | None:
        if token is None or request.path == "/health":
            return None
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if hmac.compare_digest(given, expected):
            return None
        response = _error(401, "The worker's bearer token is missing or wrong.", code="invalid_api_key")
        response.headers["www-authenticate"] = "Bearer"
        return response


def _add_generation(app: App, model: str, engine: Engine) -> None:
    def serve(kind: Kind, parser: _Parser) -> Callable[[Request], Any]:
        async def handler(request: Request) -> HTTPResponse | None:
            body = await _read_body(request)
            async with engine.answering(lambda: parser(parse_json(body), model)) as (wanted, answer):
                prefix = "chatcmpl" if kind == "chat" else "cmpl"
                envelope = Envelope(kind, f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model)
                if wanted.is_stream:
                    await _stream(request, EventStream(envelope, include_usage=wanted.include_usage), wanted, answer)
                    return None
                return await _whole(envelope, answer)

        return handler

    # Streamed bodies are read by the handler, behind the guard: nobody without the token makes the worker keep one.
    chat, completion = serve("chat", parse_chat), serve("completion", parse_completion)
    app.add_route(chat, "/v1/chat/completions", methods=["POST"], stream=True, name="chat")
    app.add_route(completion, "/v1/completions", methods=["POST"], stream=True, name="completions")


def _add_reports(app: App, model: str, engine: Engine) -> None:
    @app.get("/health")
    async def health(_: Request) -> HTTPResponse:
        is_alive = engine.is_alive
        return json_response({"status": "ok" if is_alive else "failed"}, status=200 if is_alive else 503)

    @app.get("/ready")
    async def ready(_: Request) -> HTTPResponse:
        readiness = engine.readiness()
        headers = {} if readiness.is_ready else {"retry-after": "1"}
        return json_response(readiness.model_dump(), status=200 if readiness.is_ready else 503, headers=headers)

    @app.get("/status")
    async def status(_: Request) -> HTTPResponse:
        return json_response(engine.status().model_dump())

    @app.get("/v1/models")
    async def models(_: Request) -> HTTPResponse:
        return json_response(openai.model_list(model, engine.started_at, engine.status().context_length))


async def open_server(app: App, listener: socket.socket) -> Any:
    """Serve `app` on a listening socket; return Sanic's server."""
    server: Any = await app.create_server(sock=listener, return_asyncio_server=True)
    await server.startup()
    await server.start_serving()
    return server


async def close_server(server: Any) -> None:
    """Stop listening, and close every connection once its last answer is on the way or LINGER_S have passed."""
    server.close()
    try:
        async with asyncio.timeout(LINGER_S):
            while server.connections:
                for connection in list(server.connections):
                    connection.close_if_idle()
                await asyncio.sleep(0.01)
    except TimeoutError:
        for connection in list(server.connections):
            connection.abort()


async def _read_body(request: Request) -> bytes:
    """Return the request's body; raises `RequestError` with status 413 or 408."""
    stream: Any = request.stream
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while part := await stream.read():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise RequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    except TimeoutError:
        raise RequestError("The body took too long to arrive.", status=408) from None
    # Sanic stops reading a connection while much waits to be read and does not begin again behind a body's end; a
    # connection that is not read from cannot tell that its client left.
    transport: Any = request.transport
    transport.resume_reading()
    return bytes(body)


async def _whole(envelope: Envelope, answer: Answer) -> HTTPResponse:
    texts = []
    while True:
        piece = await answer.read()
        texts.append(piece.text)
        if piece.finish is not None:
            usage = Usage(answer.prompt_tokens, answer.generated_tokens)
            return _json(envelope.whole("".join(texts), piece.finish, usage))


async def _stream(request: Request, events: EventStream, wanted: Wanted, answer: Answer) -> None:
    # The first piece decides between an HTTP error and a stream: a request that fails before it still gets a status.
    piece = await answer.read()
    response = await request.respond(
        content_type="text/event-stream; charset=utf-8",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )
    data = events.first()
    try:
        while piece.finish is None:
            data += events.text(piece.text) if piece.text else b""
            if data:
                await _send(response, data)
            data = b""
            piece = await answer.read()
    except GenerationError as error:
        logger.warning("a stream ended early: %s", error)
        body = error_body(str(error), kind=kind_of(500), code="generation_failed")
        await _send(response, openai.error_event(body))
    else:
        data += events.text(piece.text) if piece.text else b""
        usage = Usage(answer.prompt_tokens, answer.generated_tokens) if wanted.include_usage else None
        await _send(response, data + events.end(piece.finish, usage))
    await response.eof()


async def _send(response: HTTPResponse, data: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await response.send(data)


async def _answer_error(request: Request, error: Exception) -> HTTPResponse:
    """Turn every exception into OpenAI's error object; what nobody expected is logged and told without details."""
    match error:
        case RequestError():
            return _error(error.status, error.message, param=error.param, code=error.code)
        case UnavailableError():
            response = _error(503, error.message, code=error.code)
            response.headers["retry-after"] = str(error.retry_after_s)
            return response
        case GenerationError():
            return _error(500, str(error), code="generation_failed")
        case SanicException():
            response = _error(error.status_code, str(error))
            response.headers.update(error.headers)
            return response
        case _:
            logger.error("%s %s failed", request.method, request.path, exc_info=error)
            return _error(500, "The worker failed to handle the request.")


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> HTTPResponse:
    return _json(error_body(message, kind=kind_of(status), param=param, code=code), status)


def _json(body: dict[str, Any], status: int = 200) -> HTTPResponse:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return HTTPResponse(text.encode(), status=status, content_type="application/json")
