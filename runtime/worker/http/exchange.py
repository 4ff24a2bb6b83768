"""I/O: read the body of a request, and write an answer as a whole or as a stream."""

import asyncio
import logging
from typing import Any

from sanic import HTTPResponse, Request

from runtime.worker import openai
from runtime.worker.answer import Answer
from runtime.worker.choices import Stream, Whole
from runtime.worker.errors import GenerationError, RequestError, error_body, kind_of
from runtime.worker.openai import Usage

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 1024 * 1024
"""More than a gateway lets pass by default."""
BODY_TIMEOUT_S = 120.0
"""How long a body may take to arrive."""
SEND_TIMEOUT_S = 60.0
"""A client that takes none of its stream for this long has left."""


async def read_body(request: Request) -> bytes:
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


async def answer_whole(whole: Whole, answer: Answer, *, has_token_ids: bool) -> HTTPResponse:
    """Wait for the end of an answer and return all of it."""
    while not whole.is_over:
        whole.add(await answer.read())
    usage = _usage(answer)
    token_ids = answer.token_ids() if has_token_ids else None
    # Log probabilities make millions of characters; a loop that stands still for long ends its group.
    data = await asyncio.to_thread(lambda: openai.encoded(whole.body(usage, token_ids)))
    return HTTPResponse(data, content_type="application/json")


async def answer_stream(request: Request, stream: Stream, answer: Answer) -> None:
    """Write an answer while it is generated."""
    # The first pieces decide between an HTTP error and a stream: a request that fails before still gets a status.
    data = stream.add(await answer.read())
    response = await request.respond(
        content_type="text/event-stream; charset=utf-8",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )
    data = stream.first() + data
    try:
        while not stream.is_over:
            if data:
                await _send(response, data)
            data = stream.add(await answer.read())
    except GenerationError as error:
        logger.warning("a stream ended early: %s", error)
        body = error_body(str(error), kind=kind_of(500), code="generation_failed")
        await _send(response, openai.error_event(body))
    else:
        await _send(response, data + stream.end(_usage(answer)))
    await response.eof()


def _usage(answer: Answer) -> Usage:
    return Usage(answer.prompt_tokens, answer.generated_tokens, answer.cached_tokens)


async def _send(response: HTTPResponse, data: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await response.send(data)
