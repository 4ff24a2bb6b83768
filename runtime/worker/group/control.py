"""I/O: the control plane's sockets: ZeroMQ with CURVE both ways, so that only this launch's ranks can speak and read.

Rank 0 binds a ROUTER, every other rank connects a DEALER. One message is one frame of JSON. Who speaks is known from
the key of the connection, never from what a message says.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import zmq
import zmq.asyncio
import zmq.auth.asyncio
from pydantic import ValidationError
from zmq.utils.monitor import parse_monitor_message

from runtime.worker.group import wire
from runtime.worker.settings import Group
from schemas import exits

logger = logging.getLogger(__name__)

MOST_ROUND_BYTES = 256 * 1024 * 1024
"""A round holds at most the prompts of a full batch, some seven bytes a token."""
MOST_WORD_BYTES = 1024 * 1024
"""What the others say is short; a stranger may send as much before its key is looked at."""
RECONNECT_MS = 200
LINGER_MS = 1000
"""What last messages get to leave before the process ends."""
_USER = "User-Id"


class ControlError(Exception):
    """The control plane cannot be opened, or what came over it makes no sense."""


class Server:
    """Rank 0's end."""

    def __init__(self, group: Group) -> None:
        """Bind; raises ControlError where the address is taken or not ours."""
        self._context = zmq.asyncio.Context()
        self._keys = {key: rank for rank, key in enumerate(group.peers) if rank != group.rank}
        self._routes: dict[int, bytes] = {}
        """ZeroMQ's names of the connections, keyed by rank."""
        self._guard = zmq.auth.asyncio.AsyncioAuthenticator(self._context)
        self._guard.start()
        self._guard.configure_curve_callback(domain="*", credentials_provider=self)
        self._socket: Any = self._context.socket(zmq.ROUTER)
        _secure(self._socket, group, MOST_WORD_BYTES)
        self._socket.curve_server = True
        # A message to a rank whose connection is gone raises instead of vanishing.
        self._socket.router_mandatory = True
        self._monitor: Any = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        try:
            self._socket.bind(f"tcp://{group.control}")
        except zmq.ZMQError as error:
            self._shut(0)
            self._context.destroy(0)
            raise ControlError(f"cannot listen for the other ranks on {group.control}: {error}") from error

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002 - the authenticator's interface
        """Tell the authenticator whether a public key is one of this launch's."""
        is_known = key.decode() in self._keys
        if not is_known:
            logger.warning("a stranger was refused on the control plane")
        return is_known

    def send(self, rank: int, message: bytes) -> bool:
        """Send an encoded message without waiting; return False where the rank's connection is gone."""
        try:
            self._socket.send_multipart([self._routes[rank], message], flags=zmq.NOBLOCK).result()
        except (KeyError, zmq.ZMQError):
            return False
        return True

    async def receive(self) -> tuple[int, wire.Message]:
        """Return the next message and the rank that sent it; raises ControlError for one that makes no sense."""
        route, frame = await self._socket.recv_multipart(copy=False)
        rank = self._keys[str(frame.get(_USER))]
        # A rank that reconnects has lost messages: it keeps its first connection, which is gone.
        self._routes.setdefault(rank, bytes(route.buffer))
        return rank, _decode(bytes(frame.buffer), rank)

    async def disconnections(self) -> AsyncIterator[None]:
        """Yield whenever some connection ended; nobody can say whose."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED:
                yield

    async def close(self) -> None:
        """Let the last messages leave, for LINGER_MS at most, and close."""
        self._shut(LINGER_MS)
        await asyncio.to_thread(self._context.destroy, LINGER_MS)

    def _shut(self, linger_ms: int) -> None:
        """Close the sockets, which belong to the loop; only the wait for what lingers may leave it."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
        self._guard.stop()


class Client:
    """The end of every other rank."""

    def __init__(self, group: Group) -> None:
        """Begin to connect; rank 0 need not be there yet."""
        self._context = zmq.asyncio.Context()
        self._socket: Any = self._context.socket(zmq.DEALER)
        _secure(self._socket, group, MOST_ROUND_BYTES)
        self._socket.curve_serverkey = group.peers[0].encode()
        self._socket.reconnect_ivl = RECONNECT_MS
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
        self._monitor: Any = self._socket.get_monitor_socket(events)
        self._socket.connect(f"tcp://{group.control}")

    def send(self, message: bytes) -> None:
        """Send an encoded message; before the connection it waits for it."""
        self._socket.send(message, flags=zmq.NOBLOCK).result()

    async def receive(self) -> wire.Message:
        """Return the next message of rank 0; raises ControlError for one that makes no sense."""
        frame = await self._socket.recv()
        return _decode(frame, 0)

    async def lost(self) -> tuple[int, str]:
        """Wait until rank 0 is gone or refuses our key; return the code of `schemas.exits` for it, and words."""
        is_connected = False
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return exits.GROUP_REFUSED, "rank 0 does not accept the key of this rank"
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                is_connected = True
            elif is_connected:
                return exits.RANK_LOST, "the connection to rank 0 was lost"

    async def close(self) -> None:
        """Let the last messages leave, for LINGER_MS at most, and close."""
        # The sockets belong to the loop; only the wait for what lingers may leave it.
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(LINGER_MS)
        await asyncio.to_thread(self._context.destroy, LINGER_MS)


def _secure(socket: Any, group: Group, most_bytes: int) -> None:
    socket.curve_publickey = group.peers[group.rank].encode()
    socket.curve_secretkey = group.secret.encode()
    socket.ipv6 = group.control.startswith("[")
    socket.sndhwm = 0  # a stopped rank must not hold up the others; silence ends it soon
    socket.rcvhwm = 0
    socket.maxmsgsize = most_bytes
    socket.linger = LINGER_MS


def _decode(frame: bytes, rank: int) -> wire.Message:
    try:
        return wire.decode(frame)
    except ValidationError as error:
        raise ControlError(f"rank {rank} sent what is no message of this version") from error


def public_key(secret: str) -> str:
    """Return the public key that belongs to a secret one, both in Z85; raises ControlError."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, ValueError, TypeError) as error:
        raise ControlError("the secret key is no CURVE key in Z85") from error


def new_keys(size: int) -> Sequence[tuple[str, str]]:
    """Make a (public, secret) pair of keys for each rank."""
    return [(public.decode(), secret.decode()) for public, secret in (zmq.curve_keypair() for _ in range(size))]
