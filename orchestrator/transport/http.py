"""I/O: HTTP to what listens on a node, also on its loopback: from the node itself, over its transport."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from orchestrator.transport.base import NodeTransport, Stream, TransportError

HEAD_TIMEOUT_S = 60.0
"""For the answer's first line where the client sets no limit."""


_KINDS: dict[tuple[bool, bool], type[httpx.TransportError]] = {
    (False, False): httpx.ConnectError,
    (False, True): httpx.ConnectTimeout,
    (True, False): httpx.ReadError,
    (True, True): httpx.ReadTimeout,
}
"""What httpx itself would raise, by whether there was a connection and whether the time was over."""


class NodeSilentError(httpx.ConnectError):
    """The node itself could not be asked: whether anything listens there is unknown."""


class NodeHttpTransport(httpx.AsyncBaseTransport):
    """Sends each request of an `httpx.AsyncClient` from the node itself, on a connection of its own.

    `python` gives the interpreter on the node. Nothing has to be open but the way that commands take.
    """

    def __init__(self, transport: NodeTransport, python: Callable[[], Awaitable[str]]) -> None:
        self._transport = transport
        self._python = python
        self._source = Path(__file__).parents[1].joinpath("node", "http_call.py").read_text()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request; see `httpx.AsyncBaseTransport`.

        Raises `NodeSilentError`, and what httpx raises: `ConnectError` where nothing listens, `ReadTimeout` or
        `ReadError` where something does and gave no answer.
        """
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        limit_s = timeouts.get("read") or HEAD_TIMEOUT_S
        asked = await _asked(request, limit_s)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limit_s + (timeouts.get("connect") or 0.0)):
                    argv = [await self._python(), "-c", self._source]
                    stream = await stack.enter_async_context(self._transport.stream(argv, input=asked))
                    lines = aiter(stream)
                    head = await anext(lines, b"")
            except TimeoutError as error:
                raise httpx.ReadTimeout(f"{self._transport.node} gave no answer", request=request) from error
            except TransportError as error:
                raise NodeSilentError(str(error), request=request) from error
            status, headers = self._read_head(head, stream, request)
            return httpx.Response(status, headers=headers, stream=_Body(lines, stack.pop_all()), request=request)

    def _read_head(self, head: bytes, stream: Stream, request: httpx.Request) -> tuple[int, list[tuple[str, str]]]:
        try:
            answer: dict[str, Any] = json.loads(head)
        except ValueError as error:
            said = stream.error_tail() or "it said nothing"
            raise NodeSilentError(f"{self._transport.node}: {said}", request=request) from error
        if "error" in answer:
            kind = _KINDS[answer["is_connected"], answer["is_timeout"]]
            raise kind(f"{self._transport.node}: {answer['error']}", request=request)
        # The body comes without its framing: it ends with the stream.
        framing = ("transfer-encoding", "content-length", "connection")
        return answer["status"], [(name, value) for name, value in answer["headers"] if name.lower() not in framing]


class _Body(httpx.AsyncByteStream):
    """The rest of the call's output; closing it ends the call."""

    def __init__(self, lines: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        self._lines = lines
        self._stack = stack

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for line in self._lines:
                yield line
        except TransportError as error:
            raise httpx.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._stack.aclose()


async def _asked(request: httpx.Request, timeout_s: float) -> bytes:
    port = request.url.port or {"http": 80, "https": 443}[request.url.scheme]
    asked = {
        "host": request.url.host,
        "port": port,
        "method": request.method,
        "path": request.url.raw_path.decode("ascii"),
        "headers": [(name, value) for name, value in request.headers.items() if name != "accept-encoding"],
        "body": base64.b64encode(await request.aread()).decode(),
        "timeout_s": timeout_s,
    }
    return json.dumps(asked).encode() + b"\n"
