"""I/O: the listening socket and the life of the process: start, serve, drain, end.

The socket is made with SO_REUSEPORT so that a replacement can listen beside the old process before that one drains.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP

from runtime.gateway.http1 import PlainProtocol
from runtime.gateway.live import Live

log = logging.getLogger(__name__)

BACKLOG = 1024
HAND_OVER_S = 0.1
"""How long connections that reached this process are still accepted when it ends."""
LONGEST_HAND_OVER_S = 5.0
"""How long at most, where some wait whenever it is looked: nobody takes them over, or this machine is slow."""
POLL_S = 0.02

_SO_ATTACH_REUSEPORT_CBPF = 51
_BPF_RETURN_CONSTANT = 0x06


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `OSError` when a stranger has the port or the address is not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def steer_to_newest(sock: socket.socket) -> None:
    """Send new connections to the other process that listens on this address, if there is one.

    Closing a listening socket resets the connections that wait in its queue, and the kernel goes on filling that queue
    as long as the socket is in its group. A filter that names the newest of two sockets empties it beforehand; where it
    names none that exists, the kernel chooses as before (socket(7), SO_ATTACH_REUSEPORT_CBPF). Linux only.
    """
    if sys.platform != "linux":
        return
    # One instruction `return 1`: the index of the newest socket of two. The kernel moves the last socket of a group
    # into the place of one that closes, so the older of two always has index 0.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN_CONSTANT, 0, 0, 1))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        log.info("new connections are not steered to the replacement: %s", error.strerror)


async def serve(app: Any, sock: socket.socket, live: Live, drain_s: float, when_listening: Callable[[], None]) -> None:
    """Serve until TERM or INT, then stop accepting, let requests in flight finish for `drain_s` seconds, and return."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await accept(app, sock)
    when_listening()
    await stopping.wait()
    live.is_draining = True
    log.info("draining: connections=%d", len(server.connections))
    steer_to_newest(sock)
    await asyncio.sleep(HAND_OVER_S)
    await _until_accepted(sock)
    server.close()
    # From now on Sanic ends every connection with its answer.
    app.config.KEEP_ALIVE = False
    await _drain(server.connections, drain_s)


async def accept(app: Any, sock: socket.socket) -> Any:
    """Begin to answer on a listening socket; return Sanic's server."""
    # Of an application that speaks one version Sanic leaves the header `alt-svc` away, which is empty otherwise.
    app.state.server_info.append(ApplicationServerInfo({"version": HTTP.VERSION_1}))
    server = await app.create_server(sock=sock, backlog=BACKLOG, protocol=PlainProtocol)
    await server.startup()
    await server.start_serving()
    return server


async def _until_accepted(sock: socket.socket) -> None:
    """Wait until no connection waits to be accepted: those that do are reset when the socket closes.

    A process that got no turn on its processor may have accepted nothing in all the time of the hand-over.
    """
    queue = select.poll()
    queue.register(sock, select.POLLIN)
    deadline = asyncio.get_running_loop().time() + LONGEST_HAND_OVER_S
    while queue.poll(0) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL_S)


async def _drain(connections: set[Any], drain_s: float) -> None:
    deadline = asyncio.get_running_loop().time() + drain_s
    while connections and asyncio.get_running_loop().time() < deadline:
        for connection in list(connections):
            connection.close_if_idle()
        await asyncio.sleep(POLL_S)
    if connections:
        log.warning("ending with requests in flight: connections=%d", len(connections))
    for connection in list(connections):
        connection.abort()
    await asyncio.sleep(0)
