"""Ports for servers that a test starts later, by number.

Asking the kernel for a free port is not enough for that: it hands the same number to the next outgoing connection of
any process, and the server that comes later finds it taken. So ports are taken from below the range that Linux (32768
and up) and macOS (49152 and up) use for outgoing connections; each process of a parallel run has a part of its own,
and hands out every port of it once before one is handed out again.
"""

from __future__ import annotations

import os
import socket

FIRST = 20_000
END = 32_000


class Ports:
    """One process's part of the ports."""

    def __init__(self, part: int, parts: int) -> None:
        """`part` counts from 0."""
        self.size = (END - FIRST) // parts
        self.low = FIRST + self.size * part
        self.given = os.getpid() * 37 % self.size
        """How many were passed; begins anywhere, so that two runs on one machine rarely meet."""

    def take(self, count: int) -> int:
        """Return the first of some neighbouring ports that nobody listens on."""
        for _ in range(self.size // count):
            if self.given + count > self.size:
                self.given = 0
            first = self.low + self.given
            self.given += count
            if all(is_free(port) for port in range(first, first + count)):
                return first
        raise RuntimeError(f"no {count} neighbouring ports are free from {self.low} to {self.low + self.size - 1}")


PORTS = Ports(
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)


def free_range(count: int) -> tuple[int, int]:
    """Return the first and last of some neighbouring ports that nobody listens on."""
    first = PORTS.take(count)
    return first, first + count - 1


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    return [PORTS.take(1) for _ in range(count)]


def free_port() -> int:
    """Return a port that nobody listens on."""
    return PORTS.take(1)


def is_free(port: int) -> bool:
    """Tell whether a server could listen on a port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
