"""I/O: a load generator in a process of its own: asks one port over some connections, as fast as answers come.

`python -m bench.gateway_load --port N --connections N --seconds N [--stream]` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

import uvloop

PATH = b"/v1/chat/completions"
LAST_CHUNK = b"0\r\n\r\n"


def request(*, is_stream: bool) -> bytes:
    """Return the request that is repeated."""
    document = {"model": "chat", "messages": [{"role": "user", "content": "Say forty words about rivers, please."}]}
    body = json.dumps(document | ({"stream": True} if is_stream else {}), separators=(",", ":")).encode()
    head = b"POST %b HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (PATH, len(body)) + body


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, question: bytes, latencies_s: list[float], *, is_stream: bool) -> None:
        self._question = question
        self._latencies_s = latencies_s
        self._is_stream = is_stream
        self._buffer = b""
        self.failures = 0
        self.is_asking = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        self.failures += self.is_asking

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_whole():
            return
        self._latencies_s.append(time.perf_counter() - self._asked_at)
        self.failures += not self._buffer.startswith(b"HTTP/1.1 200 ")
        self._buffer = b""
        if self.is_asking:
            self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self.transport.write(self._question)

    def _is_whole(self) -> bool:
        if self._is_stream:
            return self._buffer.endswith(LAST_CHUNK)
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return False
        return len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


async def _load(port: int, connections: int, seconds: float, *, is_stream: bool) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies_s: list[float] = []
    question = request(is_stream=is_stream)
    callers = []
    started = time.perf_counter()
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: Caller(question, latencies_s, is_stream=is_stream), "127.0.0.1", port
        )
        callers.append(caller)
    await asyncio.sleep(seconds)
    elapsed_s = time.perf_counter() - started
    for caller in callers:
        caller.is_asking = False
        caller.transport.close()
    ordered = sorted(latencies_s)
    return {
        "requests_per_s": len(ordered) / elapsed_s,
        "median_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "failures": sum(caller.failures for caller in callers),
    }


def main() -> None:
    """Ask, and print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--stream", action="store_true")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(_load(given.port, given.connections, given.seconds, is_stream=given.stream))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
