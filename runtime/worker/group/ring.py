"""I/O: what mlx's ring leaves to be done with its sockets: sleeping while they wait, and a quiet end.

mlx 0.32's ring reads its sockets in a busy loop. That is quick where the cores have nothing else to do, as in a GPU's
host; where the model itself runs on the CPU the loop takes the cores away from it: three ranks of a tiny model on two
cores made 15 tokens a second with it and 126 without. A socket that blocks for a moment wakes as soon as data arrives,
and the loop goes round often enough to send what waits meanwhile.
"""

import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

WAIT_US = 1000
"""How long one read blocks. A socket that has to send and to receive may hold up its sending for so long."""


def let_sleep(hostfile: Path) -> int:
    """Make the sockets of the ring that this process has joined block briefly; return how many there were.

    Its sockets are those with a port of the hostfile at one end: no other connection of ours uses these ports.
    """
    wait = struct.pack("ll", 0, WAIT_US)
    found = 0
    for connection in _connections(hostfile):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        connection.setblocking(True)
        found += 1
    logger.info("%d sockets of the ring sleep while they wait", found)
    return found


def hang_up(hostfile: Path) -> None:
    """Shut the ring's sockets down after one of its collectives has failed.

    The failed collective has given its memory back, and mlx 0.32 would still write to it what arrives from the other
    neighbour: processes died of it before they could say why they ended.
    """
    for connection in _connections(hostfile):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _connections(hostfile: Path) -> Iterator[socket.socket]:
    """Yield copies of the ring's sockets; options, blocking and shutdown belong to the open socket, not to the copy."""
    ports = {int(address.rpartition(":")[2]) for rank in json.loads(hostfile.read_bytes()) for address in rank}
    for descriptor in list(_sockets()):
        try:
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # closed meanwhile
            continue
        with copy:
            if _ports(copy) & ports:
                yield copy


def _sockets() -> Iterator[int]:
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names, of descriptors that may be gone when they are looked at
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except OSError:
            continue


def _ports(connection: socket.socket) -> set[int]:
    if connection.family != socket.AF_INET:
        return set()
    try:
        return {connection.getsockname()[1], connection.getpeername()[1]}
    except OSError:  # not connected
        return set()
