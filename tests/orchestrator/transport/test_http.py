"""Requests made from a node, over its transport, reach what listens on its loopback."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from orchestrator.transport.base import NodeUnreachableError
from orchestrator.transport.http import NodeHttpTransport, NodeSilentError
from orchestrator.transport.local import LocalTransport
from tests.fakes.upstream import FakeUpstream, resets, stalls


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.path} {self.headers.get('authorization')}".encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (b"data: one\n\n", b"data: " + data + b"\n\n"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def python() -> str:
    return sys.executable


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=NodeHttpTransport(LocalTransport("here"), python), timeout=30)


async def test_an_answer_comes_with_its_status_and_body(url):
    async with client() as http:
        answer = await http.get(f"{url}/ready?a=b%20c", headers={"authorization": "Bearer t"})
        assert (answer.status_code, answer.text) == (200, "/ready?a=b%20c Bearer t")
        assert (await http.get(f"{url}/busy")).status_code == 503


async def test_a_stream_comes_piece_by_piece(url):
    async with client() as http, http.stream("POST", f"{url}/stream", content=b"two") as answer:
        assert [line async for line in answer.aiter_lines() if line] == ["data: one", "data: two"]


async def test_a_closed_port_is_a_connect_error():
    async with client() as http:
        with pytest.raises(httpx.ConnectError, match="Connection refused") as refused:
            await http.get("http://127.0.0.1:1/")
    assert not isinstance(refused.value, NodeSilentError)


async def test_what_takes_a_connection_and_gives_no_answer_is_there():
    async with FakeUpstream(resets) as hangs_up, client() as http:
        with pytest.raises(httpx.ReadError):
            await http.get(hangs_up.url)
    async with FakeUpstream(stalls) as silent, client() as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get(silent.url, timeout=httpx.Timeout(0.2, connect=30.0))


async def test_a_node_that_cannot_be_asked_is_a_connect_error_of_its_own():
    async def unreachable() -> str:
        raise NodeUnreachableError("box", "no route to host")

    http = httpx.AsyncClient(transport=NodeHttpTransport(LocalTransport("box"), unreachable))
    async with http:
        with pytest.raises(NodeSilentError, match="box: no route to host"):
            await http.get("http://127.0.0.1:1/")
