"""I/O: a fake OpenAI-compatible endpoint: a real HTTP server on a real socket, as good or as bad as a test wants it.

In a test's own loop: `async with FakeUpstream() as fake: fake.behave = ...`. As a program, to be killed:
`python -m tests.fakes.upstream --port N [--host ADDRESS]`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.prefer import PROBE_HEADER
from tests.fakes.listening import Listening


@dataclass
class Seen:
    """One request as the fake saw it."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Number of the connection that it came over."""
    is_begun: bool = False
    """Whether any byte of an answer was sent."""
    was_cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the caller closes the connection before the answer was finished."""

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self.writer = writer
        self.keeps_alive = True

    async def raw(self, data: bytes) -> None:
        self.seen.is_begun = True
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int = 200, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"content_type": "application/json", "content_length": str(len(content)), **headers}
        await self.raw(head(status, fields) + content)

    async def begin_stream(self) -> None:
        await self.raw(head(200, {"content_type": "text/event-stream", "transfer_encoding": "chunked"}))

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def silence(self) -> None:
        """Say nothing until the caller gives up."""
        await self.seen.was_cut.wait()

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        self.keeps_alive = False

    def hang_up(self) -> None:
        """Close the connection properly."""
        self.keeps_alive = False


QUESTION = (PROBE_HEADER, "facts")
"""Marks the questions that a gateway asks about models."""

Behaviour = Callable[[Exchange], Awaitable[None]]


def head(status: int, headers: dict[str, str]) -> bytes:
    """Write a status line and headers."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", *lines, "", ""]).encode()


def event(document: dict[str, Any] | str) -> bytes:
    """Write one server-sent event."""
    text = document if isinstance(document, str) else json.dumps(document)
    return f"data: {text}\n\n".encode()


def chunk_document(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """Return one piece of a streamed chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


ROLE = event(chunk_document({"role": "assistant", "content": ""}))
FINISH = event(chunk_document({}, "stop"))
DONE = event("[DONE]")


def word(index: int) -> bytes:
    """Return the event of one generated word."""
    return event(chunk_document({"content": f"w{index} "}))


def completion(path: str, text: str) -> dict[str, Any]:
    """Return a whole completion of either kind."""
    is_chat = path.endswith("chat/completions")
    choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    return {
        "id": "cmpl-1",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def answers(text: str = "hello", *, words: int = 3, pause_s: float = 0.0) -> Behaviour:
    """Answer properly: JSON, or a stream of `words` events with a pause before each."""

    async def behave(exchange: Exchange) -> None:
        if exchange.seen.document.get("stream") is not True:
            await asyncio.sleep(pause_s)
            await exchange.answer(200, completion(exchange.seen.path, text))
            return
        await exchange.begin_stream()
        await exchange.chunk(ROLE)
        for index in range(words):
            if pause_s:
                await asyncio.sleep(pause_s)
            await exchange.chunk(word(index))
        await exchange.chunk(FINISH)
        await exchange.chunk(DONE)
        await exchange.end_stream()

    return behave


def refuses(status: int, body: bytes | dict[str, Any] | None = None, **headers: str) -> Behaviour:
    """Answer with an error."""
    document = body if body is not None else {"error": {"message": f"status {status}", "type": "t", "code": None}}

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(status, document, **headers)

    return behave


def streams(*pieces: bytes, then: str = "end") -> Behaviour:
    """Stream the pieces, then `end`, `reset`, `hang up` or fall into `silence`."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for piece in pieces:
            await exchange.chunk(piece)
        match then:
            case "end":
                await exchange.end_stream()
            case "reset":
                # What is on its way must arrive before the reset, which would discard it.
                await asyncio.sleep(0.05)
                exchange.reset()
            case "hang up":
                exchange.hang_up()
            case _:
                await exchange.silence()

    return behave


async def stalls(exchange: Exchange) -> None:
    """Accept the request and never answer."""
    await exchange.silence()


async def resets(exchange: Exchange) -> None:
    """Cut the connection instead of answering."""
    exchange.reset()


class FakeUpstream(Listening):
    """The server. `behave` answers every request; it may be replaced at any time."""

    def __init__(self, behave: Behaviour | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.behave: Behaviour = behave or answers()
        self.seen: list[Seen] = []
        self.pages: dict[str, Any] = {}
        """What it says of itself to a gateway, by path. Such questions are no requests: `seen` has none of them."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.open_connections.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer, number):
                pass
        self.open_connections.discard(writer)
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in raw[1:] if line)
        headers = {name.lower(): value for name, value in fields.items()}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = raw[0].split(" ")[1]
        seen = Seen(path, headers, body, number)
        exchange = Exchange(seen, writer)
        if QUESTION in headers.items():
            await self._say(exchange)
            return exchange.keeps_alive
        self.seen.append(seen)
        answering = asyncio.ensure_future(self.behave(exchange))
        watching = asyncio.ensure_future(_until_cut(reader, seen))
        try:
            await asyncio.wait([answering, watching], return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and isinstance(answering.exception(), OSError):
                seen.was_cut.set()
            return answering.done() and answering.exception() is None and exchange.keeps_alive
        finally:
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)

    async def _say(self, exchange: Exchange) -> None:
        page = self.pages.get(exchange.seen.path)
        await exchange.answer(404 if page is None else 200, page or {})


async def _until_cut(reader: asyncio.StreamReader, seen: Seen) -> None:
    """Wait until the caller closes its side. Callers send nothing more before they have the answer."""
    while not reader.at_eof():
        if reader.exception() is not None:
            break
        await asyncio.sleep(0.005)
    seen.was_cut.set()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--words", type=int, default=3)
    parser.add_argument("--pause-s", type=float, default=0.0)
    arguments = parser.parse_args()

    async def run() -> None:
        fake = FakeUpstream(answers(words=arguments.words, pause_s=arguments.pause_s))
        await fake.start(arguments.port, arguments.host)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
