"""I/O: run commands on the machine we are on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from orchestrator.directories import UNUSABLE
from orchestrator.transport.base import CommandTimeoutError, Completed, NodeDiskFullError, TransportError
from orchestrator.transport.processes import ProcessStream, kill, spawn

NOT_FOUND = 127  # what a shell, and therefore ssh, answers for a missing program
COPY_BYTES = 4 * 1024 * 1024
_OF_THE_DIRECTORY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT}
"""What another directory would mend; all that is written on this machine goes below state and models."""


class LocalTransport:
    """The node that we are on."""

    def __init__(self, node: str) -> None:
        self._node = node

    @property
    def node(self) -> str:
        """Name the node."""
        return self._node

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        """Run a command to its end; see `NodeTransport.run`."""
        try:
            process = await spawn(argv)
        except FileNotFoundError:
            return Completed(NOT_FOUND, b"", f"{argv[0]}: not found".encode())
        except OSError as error:
            raise TransportError(self.node, f"cannot run {argv[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await process.communicate(input)
        except TimeoutError as error:
            await kill(process)
            raise CommandTimeoutError(self.node, f"{argv[0]} was given up after {timeout_s:g} s") from error
        except asyncio.CancelledError:
            await kill(process)
            raise
        assert process.returncode is not None  # noqa: S101 - communicate has returned
        return Completed(process.returncode, stdout, stderr)

    async def read(self, path: str, *, timeout_s: float) -> bytes | None:
        """Return a file's content; see `NodeTransport.read`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(Path(path).read_bytes)
        except TimeoutError as error:
            raise CommandTimeoutError(self.node, f"reading {path} was given up after {timeout_s:g} s") from error
        except OSError:
            return None

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        """Put a file; see `NodeTransport.push`."""
        with self._failures(path):
            await asyncio.to_thread(_write_atomically, iter([data]), Path(path), mode)

    async def push_file(self, local_path: str, path: str, *, mode: int, report: Callable[[int], None]) -> None:
        """Copy a file; see `NodeTransport.push_file`."""
        loop, is_given_up = asyncio.get_running_loop(), threading.Event()
        source = await asyncio.to_thread(open, local_path, "rb")

        def pieces() -> Iterator[bytes]:
            done = 0
            while piece := source.read(COPY_BYTES):
                if is_given_up.is_set():
                    raise InterruptedError(errno.EINTR, "given up")
                yield piece
                done += len(piece)
                loop.call_soon_threadsafe(report, done)

        copying = loop.run_in_executor(None, _write_atomically, pieces(), Path(path), mode)
        try:
            with source, self._failures(path):
                await asyncio.shield(copying)
        except asyncio.CancelledError:
            is_given_up.set()
            await asyncio.wait([copying])
            copying.exception()  # it is ours: the copy was given up
            raise

    @contextlib.asynccontextmanager
    async def stream(self, argv: Sequence[str], *, input: bytes = b"") -> AsyncIterator[ProcessStream]:  # noqa: A002
        """Run a command while the context lasts; see `NodeTransport.stream`."""
        try:
            process = await spawn(argv)
        except OSError as error:
            raise TransportError(self.node, f"cannot run {argv[0]}: {error.strerror}") from error
        stream = ProcessStream(process)
        try:
            await stream.write(input)
            yield stream
        finally:
            await stream.end()

    @contextlib.contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            kind = NodeDiskFullError if is_full else TransportError
            mend = f"; {UNUSABLE}" if error.errno in _OF_THE_DIRECTORY else ""
            raise kind(self.node, f"cannot write {path}: {error.strerror}{mend}") from error


def _write_atomically(pieces: Iterator[bytes], path: Path, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
