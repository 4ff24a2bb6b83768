"""I/O: what the fakes in a test's own loop share: they listen on loopback while their context lasts."""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from typing import Self

from tests.ports import free_port


class Listening(ABC):
    """A server on a port of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        """How many were made to it."""
        self.open_connections: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        # A port of the kernel's choice could be somebody else's while this server does not listen for a moment.
        self.port = port or free_port()
        self._server = await asyncio.start_server(self._serve, host, self.port, ssl=self._tls)

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for writer in list(self.open_connections):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
