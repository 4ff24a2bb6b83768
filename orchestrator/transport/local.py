"""I/O: run commands on the machine we are on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.transport.base import CommandTimeoutError, Completed, TransportError

LINE_LIMIT_BYTES = 1024 * 1024
NOT_FOUND = 127  # what a shell, and therefore ssh, answers for a missing program
REAPED_POLL_S = 0.005  # a killed process is reaped within a few milliseconds


class LocalStream:
    """A running local command; see `Stream`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader = self._process.stdout
        assert reader is not None  # noqa: S101 - it was opened as a pipe
        while True:
            try:
                yield await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    yield end.partial
                return
            except asyncio.LimitOverrunError as long:
                yield await reader.readexactly(long.consumed)

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin; a command that has ended already does not read it."""
        writer = self._process.stdin
        assert writer is not None  # noqa: S101 - it was opened as a pipe
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            writer.write(data)
            await writer.drain()

    async def close_input(self) -> None:
        """End the command's stdin."""
        writer = self._process.stdin
        assert writer is not None  # noqa: S101 - it was opened as a pipe
        writer.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await writer.wait_closed()

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return await self._process.wait()


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
            process = await _spawn(argv, stderr=asyncio.subprocess.PIPE)
        except FileNotFoundError:
            return Completed(NOT_FOUND, b"", f"{argv[0]}: not found".encode())
        except OSError as error:
            raise TransportError(self.node, f"cannot run {argv[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await process.communicate(input)
        except TimeoutError as error:
            await _kill(process)
            raise CommandTimeoutError(self.node, f"{argv[0]} was given up after {timeout_s:g} s") from error
        except asyncio.CancelledError:
            await _kill(process)
            raise
        assert process.returncode is not None  # noqa: S101 - communicate has returned
        return Completed(process.returncode, stdout, stderr)

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        """Put a file; see `NodeTransport.push`."""
        try:
            await asyncio.to_thread(_write_atomically, data, Path(path), mode)
        except OSError as error:
            raise TransportError(self.node, f"cannot write {path}: {error.strerror}") from error

    @contextlib.asynccontextmanager
    async def stream(self, argv: Sequence[str], *, input: bytes = b"") -> AsyncIterator[LocalStream]:  # noqa: A002
        """Run a command while the context lasts; see `NodeTransport.stream`. Its stderr is dropped."""
        try:
            process = await _spawn(argv, stderr=asyncio.subprocess.DEVNULL)
        except OSError as error:
            raise TransportError(self.node, f"cannot run {argv[0]}: {error.strerror}") from error
        try:
            stream = LocalStream(process)
            await stream.write(input)
            yield stream
        finally:
            await _kill(process)


async def _spawn(argv: Sequence[str], *, stderr: int) -> asyncio.subprocess.Process:
    """Start a command at the head of its own session and process group."""
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=stderr, limit=LINE_LIMIT_BYTES, start_new_session=True
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelled half way, asyncio kills the leader alone and waits for ever for pipes that its children hold open.
        await _kill(await asyncio.shield(starting))
        raise


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of a command.

    Its pid names the group as long as the leader is not reaped or a member lives; output that has not ended tells that
    there is one.
    """
    is_over = process.returncode is not None and process.stdout is not None and process.stdout.at_eof()
    if not is_over:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        # Closing the transport would reap the leader behind the back of asyncio's watcher, which then warns of an
        # unknown child and invents its exit code.
        while process.returncode is None:
            await asyncio.sleep(REAPED_POLL_S)
    finally:
        _let_go(process)
    await process.wait()


def _let_go(process: asyncio.subprocess.Process) -> None:
    # Who left the group may hold the pipes open for ever, and only the private transport can let go of them.
    process._transport.close()  # type: ignore[attr-defined]


def _write_atomically(data: bytes, path: Path, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
