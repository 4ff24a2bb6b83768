"""I/O: an endpoint that answers at once, as fast as asyncio can: what the gateway is measured against.

`python -m bench.gateway.mock --port N`. Every request whose body asks for a stream gets 64 events, one write each, at
once, or `PACE_S` apart where its text says so; every other one a short JSON completion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

import uvloop

EVENTS = 64
PACE_S = 0.02
STREAM_MARKS = (b'"stream":true', b'"stream": true')
"""Proxies write the body anew, with a space or without."""
PACED_MARK = b"paced, please"
"""In a message of a request whose events are to come one by one."""


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [choice],
    }
    return _chunk(b"data: " + json.dumps(document).encode() + b"\n\n")


_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 40, "total_tokens": 50},
    }
).encode()
JSON_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_ANSWER),
    _ANSWER,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_PARTS = [
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": f"word{index} "}) for index in range(EVENTS - 3)),
    _event({}, "stop"),
    _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
]


class Mock(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            self._answer(rest[:size])

    def _answer(self, body: bytes) -> None:
        if not any(mark in body for mark in STREAM_MARKS):
            self._transport.write(JSON_ANSWER)
            return
        self._transport.write(STREAM_HEAD)
        if PACED_MARK in body:
            self._send_paced(0, asyncio.get_running_loop().time())
            return
        for part in STREAM_PARTS:
            self._transport.write(part)

    def _send_paced(self, number: int, begun: float) -> None:
        """Send an event and plan the next one, by the clock of the first: late ones do not delay the others."""
        if self._transport.is_closing():
            return
        self._transport.write(STREAM_PARTS[number])
        if number + 1 < len(STREAM_PARTS):
            due = begun + (number + 1) * PACE_S
            asyncio.get_running_loop().call_at(due, self._send_paced, number + 1, begun)


async def _serve(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Mock, host, port)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options.host, options.port))


if __name__ == "__main__":
    main()
