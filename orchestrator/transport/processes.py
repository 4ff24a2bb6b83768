"""I/O: commands as processes of ours, with their whole group: started, read, killed. What every transport stands on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence

LINE_LIMIT_BYTES = 1024 * 1024
REAPED_POLL_S = 0.005  # a killed process is reaped within a few milliseconds
ERROR_TAIL_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024


class ProcessStream:
    """A running command; see `Stream`. The end of its stderr is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors = bytearray()
        self._reading = asyncio.create_task(self._keep_errors())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader = self.process.stdout
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
        writer = self.process.stdin
        assert writer is not None  # noqa: S101 - it was opened as a pipe
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            writer.write(data)
            await writer.drain()

    async def close_input(self) -> None:
        """End the command's stdin."""
        writer = self.process.stdin
        assert writer is not None  # noqa: S101 - it was opened as a pipe
        writer.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await writer.wait_closed()

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return await reaped(self.process)

    def error_tail(self) -> str:
        """Return the end of what the command has written to stderr."""
        return self.errors.decode("utf-8", "replace").strip()

    async def end(self) -> None:
        """Kill what is left of the command, and read nothing more."""
        try:
            await kill(self.process)
        finally:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def errors_read(self, timeout_s: float) -> None:
        """Wait until stderr has ended, but not for a process that was left behind and keeps it open."""
        await asyncio.wait([self._reading], timeout=timeout_s)

    def keep(self, data: bytes) -> None:
        """Take in what came on stderr."""
        self.errors += data
        del self.errors[:-ERROR_TAIL_BYTES]

    async def _keep_errors(self) -> None:
        reader = self.process.stderr
        assert reader is not None  # noqa: S101 - it was opened as a pipe
        while data := await reader.read(CHUNK_BYTES):
            self.keep(data)


async def spawn(argv: Sequence[str]) -> asyncio.subprocess.Process:
    """Start a command at the head of its own session and process group."""
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_LIMIT_BYTES, start_new_session=True
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelled half way, asyncio kills the leader alone and waits for ever for pipes that its children hold open.
        await kill(await asyncio.shield(starting))
        raise


async def reaped(process: asyncio.subprocess.Process) -> int:
    """Wait for the exit code alone: asyncio's own wait() lasts until whoever has inherited the pipes closes them."""
    while process.returncode is None:
        await asyncio.sleep(REAPED_POLL_S)
    return process.returncode


async def kill(process: asyncio.subprocess.Process) -> None:
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
        await reaped(process)
    finally:
        _let_go(process)
    await process.wait()


def _let_go(process: asyncio.subprocess.Process) -> None:
    # Who left the group may hold the pipes open for ever, and only the private transport can let go of them.
    process._transport.close()  # type: ignore[attr-defined]
