"""A plain head is read as Sanic reads it, which is asked here beside ours."""

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sanic import Request, Sanic
from sanic.response import HTTPResponse
from sanic.server.protocols.http_protocol import HttpProtocol

from runtime.gateway.api.answers import Answer, read_body
from runtime.gateway.app import StrictRequest
from runtime.gateway.http1 import FIRST_REQUEST_S, PlainProtocol
from runtime.gateway.security.guard import Guard
from tests.runtime.gateway.harness import until

HEADS = (
    "GET /seen HTTP/1.1\r\nhost: a",
    "GET /seen?x=1&y=%20 HTTP/1.1\r\nHOST:a",
    "POST /seen HTTP/1.1\r\nhost: localhost:80\r\ncontent-length: 2",
    "POST /seen HTTP/1.1\r\nhost: localhost\r\nContent-Length:\t2\r\nx-twice: 1\r\nX-Twice:   2  \r\nx-no:\r\nx-end:",
    "POST /seen HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: Keep-Alive",
    "GET /seen HTTP/1.1\r\nhost: localhost\r\nconnection: close",
    "GET /seen HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nconnection: keep-alive",
    "GET /seen HTTP/1.1\r\nhost: localhost\r\nx-colon: a:b: c\r\nx-bytes: \u00e9\u2028\r\nx-space: \u00a0a",
    "GET /seen HTTP/1.0\r\nhost: localhost",
    "POST /seen HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2",
    "GET /seen HTTP/1.1",
    "GET /seen HTTP/1.1\r\nhost: localhost\r\nno colon",
    "GET /seen HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2",
    "GET /seen HTTP/1.1\r\nhost: elsewhere.example",
    "BREW /seen HTTP/1.1\r\nhost: localhost",
    "nonsense",
)


def guarded(name: str) -> Sanic[Any, Any]:
    """Return an application that judges requests as the gateway does."""
    app: Sanic[Any, Any] = Sanic(name, request_class=StrictRequest, configure_logging=False)
    app.config.ACCESS_LOG = False
    app.ctx.guard = Guard("127.0.0.1", lambda: 0.0, lambda: 0.0)
    return app


async def serve(app: Sanic[Any, Any], protocol: type[HttpProtocol]) -> tuple[Any, int]:
    """Serve an application by a protocol; return Sanic's server and its port."""
    sock = socket.create_server(("127.0.0.1", 0))
    server: Any = await app.create_server(sock=sock, protocol=protocol)
    await server.startup()
    await server.start_serving()
    return server, sock.getsockname()[1]


@pytest.fixture
async def ports() -> AsyncIterator[list[int]]:
    """The same application behind Sanic's protocol and behind ours."""
    app = guarded("seen")

    async def seen(request: Request) -> HTTPResponse:
        stream: Any = request.stream
        body = (await stream.read() or b"") if stream.request_body else b""
        named = sorted((name.lower(), value) for name, value in request.headers.items())
        told = [request.method, request.path, request.query_string, request.version, named, body.decode()]
        return HTTPResponse(json.dumps(told), content_type="application/json")

    async def whole(request: Request) -> HTTPResponse:
        return Answer(b'{"a": 1}', int(request.args.get("status")), {"x-mark": "1"}, "application/json")

    async def echoed(request: Request) -> HTTPResponse:
        return Answer(await read_body(request, 1024), 200, {"x-mark": "1"}, "application/json")

    app.add_route(echoed, "/echoed", methods=["POST"], stream=True)
    app.add_route(seen, "/seen", methods=["GET", "POST"], stream=True)
    app.add_route(whole, "/whole", methods=["GET"])
    servers = []
    found = []
    for protocol in (HttpProtocol, PlainProtocol):
        server, port = await serve(app, protocol)
        found.append(port)
        servers.append(server)
    yield found
    for server in servers:
        server.close()


async def answer_to(port: int, sent: bytes) -> list[bytes]:
    """Return the lines of what comes back before the connection ends, or rests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    said = await reader.readuntil(b"\r\n\r\n")
    said += await reader.read() if b"connection: close" in said else await reader.readexactly(_size(said))
    writer.close()
    return said.split(b"\r\n")


@pytest.mark.parametrize("status", [200, 404, 499])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_is_written_as_sanic_writes_it(ports: list[int], status: int, version: str) -> None:
    sent = f"GET /whole?status={status} HTTP/{version}\r\nhost: localhost\r\n\r\n".encode()

    theirs, ours = [await answer_to(port, sent) for port in ports]

    # Sanic names other versions of HTTP in it, of which there are none here.
    assert ours == [line for line in theirs if line != b"alt-svc: "]


@pytest.mark.parametrize("pieces", [1, 2, 7, 10_000])
async def test_requests_that_come_behind_each_other_are_answered_in_their_order(ports: list[int], pieces: int) -> None:
    """A body ends where its head says, and what follows is the next request, however the network splits them."""
    bodies = [b"{}", b"GET /seen HTTP/1.1\r\nhost: a\r\n\r\n", b"x" * 300]
    head = b"POST /echoed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
    sent = b"".join(head % (len(body), body) for body in bodies)
    size = -(-len(sent) // pieces)
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
    for start in range(0, len(sent), size):
        writer.write(sent[start : start + size])
        await asyncio.sleep(0)

    answers = [await reader.readexactly(_size(await reader.readuntil(b"\r\n\r\n"))) for _ in bodies]

    assert answers == bodies
    writer.close()


def _size(head: bytes) -> int:
    declared = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return int(declared or b"0")


@pytest.mark.parametrize("head", HEADS)
async def test_a_head_is_read_as_sanic_reads_it(ports: list[int], head: str) -> None:
    sent = head.encode() + b"\r\n\r\n" + (b"{}" if ": 2" in head or ":\t2" in head else b"")

    theirs, ours = [await answer_to(port, sent) for port in ports]

    assert ours[0] == theirs[0]
    if theirs[0].endswith(b"200 OK"):
        assert ours == theirs
    assert (b"connection: close" in ours) == (b"connection: close" in theirs)


@pytest.fixture
async def drained() -> AsyncIterator[tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection to a small server: the server's side of it, and the client's."""
    app = guarded("drained")

    async def whole(_request: Request) -> HTTPResponse:
        return Answer(b"{}", 200, {}, "application/json")

    app.add_route(whole, "/whole", methods=["GET"])
    server, port = await serve(app, PlainProtocol)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: server.connections, what="the connection is accepted")
    (connection,) = server.connections
    yield connection, reader, writer
    writer.close()
    server.close()


WHOLE = b"GET /whole HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def test_a_request_that_has_just_arrived_is_no_idle_connection(drained: Any) -> None:
    connection, reader, writer = drained
    writer.write(WHOLE)
    await reader.readuntil(b"{}")

    connection.data_received(WHOLE)
    closed_at_once = connection.close_if_idle()
    said = await reader.readuntil(b"{}")
    await until(connection.close_if_idle, what="it is idle")

    assert not closed_at_once
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert await reader.read() == b""


async def test_a_connection_whose_first_request_is_on_its_way_is_not_idle_yet(drained: Any) -> None:
    connection, reader, writer = drained
    connection.fresh_until = math.inf  # however slow this machine is
    closed_at_once = connection.close_if_idle()
    writer.write(WHOLE)
    said = await reader.readuntil(b"{}")
    await until(connection.close_if_idle, what="it is idle")

    assert not closed_at_once
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert await reader.read() == b""


async def test_a_connection_that_asks_for_nothing_is_not_waited_for_long(drained: Any) -> None:
    connection, reader, _ = drained
    assert connection.fresh_until <= connection.loop.time() + FIRST_REQUEST_S
    connection.fresh_until = connection.loop.time()

    assert connection.close_if_idle()
    assert await reader.read() == b""
