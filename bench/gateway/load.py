"""I/O: a load generator in a process of its own: asks one port over some connections, and prints one JSON object.

`python -m bench.gateway.load --port N --connections N --seconds N [--stream]` asks as fast as answers come.
`... --paced` opens one stream on each connection, whose events the endpoint sends one by one, and watches their gaps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import cast

import uvloop

from bench.gateway.mock import PACE_S

LAST_CHUNK = b"0\r\n\r\n"
PACED_S = 60.0
"""How long paced streams may take."""


def request(path: str, model: str, headers: Sequence[str], *, is_stream: bool, is_paced: bool = False) -> bytes:
    """Return the request that is repeated; `headers` are whole lines."""
    text = "Say forty words about rivers, paced, please." if is_paced else "Say forty words about rivers, please."
    document = {"model": model, "messages": [{"role": "user", "content": text}]}
    body = json.dumps(document | ({"stream": True} if is_stream else {}), separators=(",", ":")).encode()
    return framed(path, body, headers)


def framed(path: str, body: bytes, headers: Sequence[str]) -> bytes:
    """Return a request with a body; `headers` are whole lines."""
    lines = (f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *headers)
    return "\r\n".join((*lines, f"content-length: {len(body)}", "", "")).encode() + body


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, question: bytes, latencies_s: list[float]) -> None:
        self._question = question
        self._latencies_s = latencies_s
        self._buffer = bytearray()
        self._size: int | None = None
        self.failures = 0
        self.is_asking = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        self.failures += self.is_asking
        self.is_asking = False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_whole():
            return
        self._latencies_s.append(time.perf_counter() - self._asked_at)
        self.failures += not self._buffer.startswith(b"HTTP/1.1 200 ")
        self._buffer.clear()
        self._size = None
        if self.is_asking:
            self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self.transport.write(self._question)

    def _is_whole(self) -> bool:
        if self._size is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            declared = bytes(self._buffer[:end]).lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._size = end + 4 + int(declared) if declared else -1
        return self._buffer.endswith(LAST_CHUNK) if self._size < 0 else len(self._buffer) >= self._size


class Listener(asyncio.Protocol):
    """One paced stream: counts its events and notes the gaps between them."""

    def __init__(self, question: bytes, ended: asyncio.Future[None]) -> None:
        self._question = question
        self._ended = ended
        self._last = 0.0
        self._tail = b""
        self.gaps_s: list[float] = []
        self.events = 0
        self.is_good = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._question)

    def connection_lost(self, _: Exception | None) -> None:
        self._finish()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._tail + data
        # A mark that is cut in two is counted with its second half.
        found, self._tail = data.count(b"data: "), data[-5:]
        self.events += found
        if found and self._last:
            self.gaps_s.append(now - self._last)
        if found:
            self._last = now
        if data.endswith(LAST_CHUNK):
            self.is_good = True
            self._transport.close()
            self._finish()

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def _load(port: int, connections: int, seconds: float, question: bytes) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies_s: list[float] = []
    callers = []
    started = time.perf_counter()
    for _ in range(connections):
        _, caller = await loop.create_connection(lambda: Caller(question, latencies_s), "127.0.0.1", port)
        callers.append(caller)
    await asyncio.sleep(seconds)
    elapsed_s = time.perf_counter() - started
    failures = sum(caller.failures for caller in callers)
    for caller in callers:
        caller.is_asking = False
        caller.transport.close()
    ordered = sorted(latencies_s) or [seconds]
    return {
        "requests": len(latencies_s),
        "requests_per_s": len(latencies_s) / elapsed_s,
        "median_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "failures": failures,
    }


async def _listen(port: int, connections: int, question: bytes) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = []
    listeners = []
    for _ in range(connections):
        ends.append(loop.create_future())
        _, listener = await loop.create_connection(lambda: Listener(question, ends[-1]), "127.0.0.1", port)
        listeners.append(listener)
    await asyncio.wait(ends, timeout=PACED_S)
    gaps = sorted(gap for listener in listeners for gap in listener.gaps_s) or [PACED_S]
    return {
        "streams": connections,
        "events": sum(listener.events for listener in listeners),
        "failures": sum(not listener.is_good for listener in listeners),
        "gap_over_pace_p50_ms": (gaps[len(gaps) // 2] - PACE_S) * 1000,
        "gap_over_pace_p99_ms": (gaps[int(len(gaps) * 0.99)] - PACE_S) * 1000,
    }


def main() -> None:
    """Ask, and print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", default="chat")
    parser.add_argument("--header", action="append", default=[], help="a whole line, such as 'x-a: b'")
    parser.add_argument("--body", help="the JSON that is sent instead of a chat in OpenAI's words")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--paced", action="store_true")
    given = parser.parse_args()
    is_stream = given.stream or given.paced
    question = request(given.path, given.model, given.header, is_stream=is_stream, is_paced=given.paced)
    if given.body is not None:
        question = framed(given.path, given.body.encode(), given.header)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if given.paced:
            figures = runner.run(_listen(given.port, given.connections, question))
        else:
            figures = runner.run(_load(given.port, given.connections, given.seconds, question))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
