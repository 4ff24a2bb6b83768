"""I/O: Sanic's own HTTP/1.1, with a short way for what nearly every request is: a plain head that has arrived whole.

Sanic looks at a head line by line, several times. One that the request's class has found sound, as it judges every
head (`framing.find_fault`), can be taken apart at once. What asks for more (an upgrade, 100 Continue, chunks, another
version) and what has not arrived yet goes Sanic's way.
"""

from __future__ import annotations

import re
from typing import Any

from sanic.compat import Header
from sanic.http import Http, Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from runtime.gateway.api.answers import Answer

FIRST_REQUEST_S = 2.0
"""How long a connection that has carried no request yet is kept for its first one when the process ends."""

_PLAIN = re.compile(rb"(GET|POST|DELETE|PUT|OPTIONS) (/[!-~]*) HTTP/1\.1\r\n")
_SPECIAL = re.compile(rb"\n(?:expect|transfer-encoding|upgrade)[ \t]*:", re.IGNORECASE)
_FIELD = re.compile(r"\r\n([^:\r\n]+):[^\S\r\n]*([^\r\n]*)")


class PlainHttp(Http):
    """One connection's requests."""

    __slots__ = ()

    async def http1_request_header(self) -> None:
        """Read a head into `self.request`, as Sanic's own does."""
        self.protocol.fresh_until = 0.0  # type: ignore[attr-defined]
        buffer = self.recv_buffer
        end = buffer.find(b"\r\n\r\n")
        if not 0 < end < self.HEADER_MAX_SIZE:
            await super().http1_request_header()  # type: ignore[no-untyped-call]
            return
        head = bytes(buffer[:end])
        line = _PLAIN.match(head)
        if line is None or _SPECIAL.search(head) is not None:
            await super().http1_request_header()  # type: ignore[no-untyped-call]
            return
        protocol: Any = self.protocol
        method, url = line.groups()
        self.url = url.decode("ascii")
        self.head_only = False
        headers = Header(_FIELD.findall(head.decode(errors="surrogateescape")))
        connection = headers.getall("connection", ("keep-alive",))
        self.keep_alive = protocol.app.config.KEEP_ALIVE and connection[-1].lower() == "keep-alive"
        # This is where a head is refused that is not sound.
        request = protocol.request_class(
            url_bytes=url,
            headers=headers,
            head=head,
            version="1.1",
            method=method.decode("ascii"),
            transport=protocol.transport,
            app=protocol.app,
        )
        protocol.request_class._current.set(request)
        size = headers.getone("content-length", None)
        self.request_bytes_left = self.request_bytes = 0 if size is None else int(size)
        # Sanic's own kind of mark.
        self.request_body = True if size is not None else None  # type: ignore[assignment]
        del buffer[: end + 4]
        self.request, request.stream = request, self
        protocol.state["requests_count"] += 1

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send the head of an answer, and with it the body of one that is whole. Nothing more follows one like that."""
        answer = self.response
        is_special = self.head_only or self.expecting_continue or data
        if is_special or not isinstance(answer, Answer) or not answer.is_whole:
            await super().http1_response_header(data, end_stream)
            return
        self.response_func = None  # type: ignore[assignment]  # as Sanic marks an answer that has been sent
        await self._send(answer.written(keep_alive=self.keep_alive))
        self.stage = Stage.IDLE


class PlainProtocol(HttpProtocol):
    """One connection of a client."""

    __slots__ = ("fresh_until",)
    HTTP_CLASS = PlainHttp

    def connection_made(self, transport: Any) -> None:
        """Take note of when the connection was made."""
        self.fresh_until = self.loop.time() + FIRST_REQUEST_S
        super().connection_made(transport)  # type: ignore[no-untyped-call]

    def close_if_idle(self) -> bool:
        """Close the connection where nothing of a request has arrived; tell whether it was closed.

        Sanic's own takes one for idle whose bytes have come and whose task has not looked at them yet: a client that
        waits for its answer would be cut off. So would one whose first request is on its way: who connects asks.
        """
        if self.recv_buffer or self.loop.time() < self.fresh_until:
            return False
        return super().close_if_idle()
