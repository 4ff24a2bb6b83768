"""I/O: an endpoint that answers at once, as fast as asyncio can: what the gateway is measured against.

`python -m bench.mock_upstream --port N`. Every POST with `"stream":true` in its body gets 64 events, one write each;
every other one a short JSON completion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

import uvloop

EVENTS = 64
STREAM_MARK = b'"stream":true'


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
            self._answer(is_stream=STREAM_MARK in rest[:size])

    def _answer(self, *, is_stream: bool) -> None:
        if not is_stream:
            self._transport.write(JSON_ANSWER)
            return
        self._transport.write(STREAM_HEAD)
        for part in STREAM_PARTS:
            self._transport.write(part)


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
