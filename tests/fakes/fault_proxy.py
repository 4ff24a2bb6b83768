"""I/O: a proxy on loopback that does to an endpoint's answers what bad networks and bad servers do.

In a test's own loop: `async with FaultProxy(fake.port) as proxy: proxy.faults = Faults(cut_after=20)`. It knows just
enough of HTTP to count the events of a chunked answer; everything else is passed on as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass

from tests.fakes.listening import Listening


@dataclass(frozen=True)
class Faults:
    """What goes wrong. Events are counted from 1; without a fault everything is passed on."""

    latency_s: float = 0.0
    """Before the first byte of each answer."""
    is_black_hole: bool = False
    """Takes connections and requests, and passes nothing on."""
    resets: bool = False
    """Resets each connection as soon as a request comes."""
    cut_after: int | None = None
    """Closes the connection after so many events of a stream."""
    stall_after: int | None = None
    """Passes nothing on after so many events, and keeps the connection open, as a link that went down does."""
    corrupt: int | None = None
    """Makes this event no JSON."""
    drops_done: bool = False
    """Leaves out `data: [DONE]`."""
    raw: bytes | None = None
    """Sent in place of the endpoint's answer."""


class FaultProxy(Listening):
    """The proxy. `faults` may be replaced at any time; each answer has those of its beginning."""

    def __init__(self, port: int) -> None:
        """`port` is the endpoint's, on loopback."""
        super().__init__()
        self.faults = Faults()
        self._behind = port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._behind)
        self.open_connections |= {writer, ahead}
        requests = asyncio.ensure_future(self._pass_requests(reader, writer, ahead))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._pass_answer(behind, writer):
                pass
        if not self.faults.is_black_hole and self.faults.stall_after is None:
            requests.cancel()
        # A link that is down says nothing: the connection stays as it is until the other side gives it up.
        await asyncio.gather(requests, return_exceptions=True)
        for each in (writer, ahead):
            self.open_connections.discard(each)
            each.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if self.faults.resets:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                    break
                if self.faults.raw is not None:
                    writer.write(self.faults.raw)
                    await writer.drain()
                    break
                if not self.faults.is_black_hole:
                    ahead.write(data)
                    await ahead.drain()
        finally:
            ahead.transport.abort()

    async def _pass_answer(self, behind: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one answer on; return False when the connection ends with it."""
        head = await behind.readuntil(b"\r\n\r\n")
        faults = self.faults
        await asyncio.sleep(faults.latency_s)
        writer.write(head)
        if b"transfer-encoding: chunked" not in head.lower():
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            writer.write(await behind.readexactly(int(length.split(b":")[1])))
            await writer.drain()
            return True
        number = 0
        while size := int(await behind.readuntil(b"\r\n"), 16):
            event = (await behind.readexactly(size + 2))[:-2]
            number += 1
            if faults.drops_done and b"[DONE]" in event:
                continue
            if number == faults.corrupt:
                event = event.replace(b"{", b"[", 1)
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            if number in (faults.cut_after, faults.stall_after):
                return False
        writer.write(b"0\r\n" + await behind.readuntil(b"\r\n"))
        await writer.drain()
        return True
