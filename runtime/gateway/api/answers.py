"""I/O: what all answers have in common: the headers of ours, and the reading of request bodies."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

from sanic import Request
from sanic.compat import Header
from sanic.helpers import STATUS_CODES
from sanic.response import HTTPResponse

from runtime.gateway.attempt import Notes
from runtime.gateway.errors import ApiError
from runtime.gateway.live import Live
from runtime.gateway.protocols.dialect import Dialect, dialect_of

JSON = "application/json"
EXPOSED = ", ".join(
    (
        "retry-after",
        *(f"x-orchestrate-{name}" for name in ("attempts", "dropped", "emulated", "endpoint", "fallback")),
        *("x-orchestrate-generation", "x-orchestrate-request-id"),
    )
)
"""Headers of answers that listed web pages may read."""
BODY_S = 120.0
"""How long a request body may take to arrive."""

# Unique among the processes that ever run here; the system's random numbers cost 20 microseconds a request.
_PREFIX = f"req-{secrets.token_hex(6)}"
_numbers = itertools.count(1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(request: Request) -> str:
    """Return the id of a request: the client's where it is a sane token, else a new one, the same at every call."""
    found: str | None = getattr(request.ctx, "request_id", None)
    if found is None:
        given = request.headers.getone("x-request-id", "")
        found = given if given and _REQUEST_ID.fullmatch(given) else f"{_PREFIX}-{next(_numbers):x}"
        request.ctx.request_id = found
    return found


def headers(
    request: Request, live: Live, *, endpoint: str = "", attempts: int = 0, fallback: str = ""
) -> dict[str, str]:
    """Return the headers that every answer carries; `endpoint` and `fallback` are left out where there was none."""
    common = {
        "x-orchestrate-attempts": str(attempts),
        "x-orchestrate-generation": str(live.table.generation if live.table else 0),
        "x-orchestrate-request-id": request_id(request),
    }
    origin: str | None = getattr(request.ctx, "origin", None)
    if origin is not None:
        common |= {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED, "vary": "origin"}
    notes: Notes | None = getattr(request.ctx, "notes", None)
    if notes is not None and notes.emulated:
        common["x-orchestrate-emulated"] = ", ".join(notes.emulated)
    if notes is not None and notes.dropped:
        common["x-orchestrate-dropped"] = ", ".join(notes.dropped)
    if fallback:
        common["x-orchestrate-fallback"] = fallback
    return {"x-orchestrate-endpoint": endpoint, **common} if endpoint else common


def id_marks(request: Request, dialect: Dialect) -> dict[str, str]:
    """Return the header with the request's id that the clients of a dialect look for, where they look for one."""
    return {dialect.id_header: request_id(request)} if dialect.id_header else {}


_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class Answer(HTTPResponse):
    """An answer whose header values are known to be clean: ours, or checked when the request was read."""

    def __init__(self, body: bytes | None, status: int, marks: dict[str, str], content_type: str) -> None:
        # Sanic's own makes two case-insensitive multiple mappings of headers whose names are all ours; nothing of the
        # base classes is done but what their `__slots__` name. A test sends such an answer through Sanic.
        self.asgi = False
        self.body = body or b""
        self.content_type = content_type
        self.stream = None
        self.status = status
        self.headers = cast(Header, marks)
        self._cookies = None

    @property
    def processed_headers(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the headers as bytes. Sanic's own way searches every name and value for line ends.

        Sanic puts pairs together one by one; the first of ours has all the others as lines behind its value.
        """
        name, _, rest = self._lines().partition(": ")
        yield name.encode("ascii"), rest.encode("latin-1")

    @property
    def is_whole(self) -> bool:
        """Whether it has a body, which is sent with its head."""
        return bool(self.body) and self.status not in _BODILESS

    def written(self, *, keep_alive: bool) -> bytes:
        """Return all of an answer that is sent as a whole, as Sanic writes it."""
        body = self.body or b""
        self.headers["content-length"] = str(len(body))
        self.headers["connection"] = "keep-alive" if keep_alive else "close"
        status = b"HTTP/1.1 %d %b\r\n" % (self.status, STATUS_CODES.get(self.status, b"UNKNOWN"))
        return b"%b%b\r\n\r\n%b" % (status, self._lines().encode("latin-1"), body)

    def _lines(self) -> str:
        marks = self.headers
        marks.setdefault("content-type", self.content_type)
        if "content-length" in marks:
            marks["content-length"] = str(marks["content-length"])  # Sanic's is a number
        return "\r\n".join(map(": ".join, marks.items()))


def json_answer(request: Request, live: Live, document: object, status: int = 200) -> Answer:
    """Answer with a JSON document."""
    body = json.dumps(document, ensure_ascii=False).encode()
    return Answer(body, status, headers(request, live), JSON)


def error_answer(request: Request, live: Live, error: ApiError) -> HTTPResponse:
    """Answer with an error in the shape that the clients of the request's path know."""
    dialect = dialect_of(request.path)
    body = dialect.error(
        error.status,
        error.message,
        code=error.code,
        param=error.param,
        loading=error.loading,
        request_id=request_id(request),
    )
    answer = HTTPResponse(body, error.status, headers(request, live) | id_marks(request, dialect), JSON)
    if error.status == HTTPStatus.UNAUTHORIZED:
        answer.headers["www-authenticate"] = 'Bearer realm="orchestrate"'
    if error.retry_after_s is not None:
        answer.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return answer


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body; raises `ApiError` with status 413 or 408."""
    declared = int(request.headers.getone("content-length", "0"))
    if declared > limit:
        raise _too_large(limit)
    stream = cast(Any, request.stream)
    if 0 < declared <= len(stream.recv_buffer) and not stream.expecting_continue:
        body = _taken(stream, declared)
    else:
        try:
            async with asyncio.timeout(BODY_S):
                body = await _read(stream, limit)
        except TimeoutError:
            raise ApiError(408, "The request body took too long to arrive.", code="request_timeout") from None
    # Sanic stops reading a connection while much waits to be read, and a connection that is not read from cannot
    # tell that its client left.
    cast(asyncio.Transport, request.transport).resume_reading()
    return body


def _taken(stream: Any, size: int) -> bytes:
    """Take a body that has arrived with its head: nothing to wait for, and no deadline to set.

    It leaves Sanic's stream as two calls of its `read` would, whose second one finds the end.
    """
    buffer = stream.recv_buffer
    body = bytes(buffer[:size])
    del buffer[:size]
    stream.request_bytes_left = 0
    stream.request_body = None
    return body


async def _read(stream: Any, limit: int) -> bytes:
    parts, size = [], 0
    while part := await stream.read():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request body is larger than {limit} bytes.", code="request_too_large")
