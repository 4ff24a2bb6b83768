"""I/O: Sanic's server of the worker: how it begins on a socket that listens, and how it ends."""

import asyncio
import socket
from typing import Any

from sanic import Sanic
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP

LINGER_S = 3.0
"""What a client gets, after generation has ended, to take the rest of its answer."""


async def open_server(app: Sanic[Any, Any], listener: socket.socket) -> Any:
    """Serve `app` on a listening socket; return Sanic's server."""
    # Of an application that speaks one version Sanic leaves the header `alt-svc` away, which is empty otherwise.
    app.state.server_info.append(ApplicationServerInfo({"version": HTTP.VERSION_1}))
    server: Any = await app.create_server(sock=listener, return_asyncio_server=True)
    await server.startup()
    await server.start_serving()
    return server


async def close_server(server: Any) -> None:
    """Stop listening, and close every connection once its last answer is on the way or LINGER_S have passed."""
    server.close()
    try:
        async with asyncio.timeout(LINGER_S):
            while server.connections:
                for connection in list(server.connections):
                    connection.close_if_idle()
                await asyncio.sleep(0.01)
    except TimeoutError:
        for connection in list(server.connections):
            connection.abort()
