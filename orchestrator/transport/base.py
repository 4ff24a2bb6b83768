"""Pure: what every way of reaching a node can do, and how it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class TransportError(Exception):
    """A node could not be asked; what it would have answered is unknown, which is not the same as empty."""

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node


class NodeUnreachableError(TransportError):
    """The node does not answer; asking again later may help."""


class NodeRefusedError(TransportError):
    """The node answers but does not let us in; asking again is useless until somebody has done what the text says."""


class HostKeyUnknownError(NodeRefusedError):
    """Nobody has said yet which host key the node has."""


class HostKeyChangedError(NodeRefusedError):
    """The node shows another host key than the one that is trusted: a reinstalled machine, or somebody in between."""


class AccessRefusedError(NodeRefusedError):
    """The node takes none of our keys for the account."""


class CommandTimeoutError(TransportError):
    """The command was given up after its time and killed; it may or may not have taken effect."""


class NodeDiskFullError(TransportError):
    """A file could not be written because the node's disk is full or the account's quota is used up."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command on a node ended: `exit_code` is 127 when the program is missing.

    A signal shows as its negative number on this machine, and as 128 plus the number over ssh, where a shell says it.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes


class Stream(Protocol):
    """A running command whose output is read as it comes."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over lines with their ends; a line over 1 MiB comes in pieces."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin; a command that has ended already does not read it."""
        ...

    async def close_input(self) -> None:
        """End the command's stdin, which stays open until then."""
        ...

    async def wait(self) -> int:
        """Wait for the end and return the exit code; read all output first.

        Raises NodeUnreachableError when the connection was lost before the command had ended.
        """
        ...

    def error_tail(self) -> str:
        """Return the end of what the command has written to stderr, for messages."""
        ...


class NodeTransport(Protocol):
    """Commands and files on one node. Paths are strings: they belong to the node, not to this machine."""

    @property
    def node(self) -> str:
        """Name the node, for messages."""
        ...

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        """Run a command to its end, giving it `input` as stdin.

        Raises TransportError. When the time is up, or the caller is cancelled, the command and its process group are
        killed; a process that left for a session of its own stays.
        """
        ...

    async def read(self, path: str, *, timeout_s: float) -> bytes | None:
        """Return the content of a small file; None where it is not there or may not be read. Raises TransportError."""
        ...

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        """Put a file at an absolute path, making its folders: a reader sees the whole file or none.

        Raises TransportError, NodeDiskFullError among them.
        """
        ...

    async def push_file(self, local_path: str, path: str, *, mode: int, report: Callable[[int], None]) -> None:
        """Put a copy of a file of this machine, as `push` does, without holding it in memory.

        `report` is called with the bytes sent so far, now and then and at the end. There is no limit to the whole; a
        minute without a byte taken is a CommandTimeoutError. The content may not be on the disk yet: who counts on it
        after a power failure reads and syncs it. Raises TransportError, and OSError for the local file.
        """
        ...

    def stream(self, argv: Sequence[str], *, input: bytes = b"") -> AbstractAsyncContextManager[Stream]:  # noqa: A002
        """Run a command while the context lasts; after `input` its stdin stays open. Leaving the context kills it.

        Raises TransportError.
        """
        ...
