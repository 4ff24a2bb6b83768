"""I/O: one command that runs on another machine, told from what `ssh` itself says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from orchestrator.transport.base import NodeUnreachableError
from orchestrator.transport.processes import ERROR_TAIL_BYTES, ProcessStream, reaped
from orchestrator.transport.ssh_words import Destination, ErrorOutput, failure, parse_stderr, split_end

ERRORS_S = 2.0  # for the last of stderr after ssh has ended


class SshStream(ProcessStream):
    """A command that runs on the node; see `Stream`. Of its stderr only the end is kept, or all with `whole`."""

    def __init__(self, process: asyncio.subprocess.Process, to: Destination, token: str, *, whole: bool) -> None:
        self.token = token
        self._to = to
        self._is_whole = whole
        self._begun: ErrorOutput | None = None
        super().__init__(process)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        first, has_begun = f"{self.token}\n".encode(), False
        async for line in super().__aiter__():
            if has_begun:
                yield line
            has_begun = has_begun or line.endswith(first)

    def keep(self, data: bytes) -> None:
        """Take in what came on stderr: ssh's own words until the remote shell has said that it begins."""
        self.errors += data
        if self._begun is None:
            seen = parse_stderr(bytes(self.errors), self.token)
            if seen.pid is None:
                return
            self._begun = seen
            self.errors = bytearray(self.errors.partition(f"{self.token} {seen.pid}\n".encode())[2])
        if not self._is_whole:
            del self.errors[:-ERROR_TAIL_BYTES]

    def parsed(self) -> ErrorOutput:
        """Return stderr taken apart."""
        if self._begun is None:
            return ErrorOutput(bytes(self.errors), None, b"", None)
        text, exit_code = split_end(bytes(self.errors), self.token)
        return ErrorOutput(self._begun.before, self._begun.pid, text, exit_code)

    def is_over(self) -> bool:
        """Tell whether ssh has ended."""
        return self.process.returncode is not None

    async def wait(self) -> int:
        """Wait for the end and return the exit code; see `Stream`. Raises what `failure` says too."""
        exit_code = await reaped(self.process)
        await self.errors_read(ERRORS_S)
        output = self.parsed()
        if output.pid is None:
            raise failure(self._to, output.before.decode("utf-8", "replace"), exit_code)
        if output.exit_code is None:
            raise NodeUnreachableError(
                self._to.node,
                f"the connection was lost while a command ran: {self.error_tail() or 'no more answers'}",
            )
        return output.exit_code

    def error_tail(self) -> str:
        """Return the end of what the command has written to stderr, or of ssh's words if it did not begin."""
        output = self.parsed()
        text = output.before if output.pid is None else output.text
        return text[-ERROR_TAIL_BYTES:].decode("utf-8", "replace").strip()


async def exchange(stream: SshStream, data: bytes) -> bytes:
    """Give a command its whole stdin and return its whole stdout."""

    async def feed() -> None:
        await stream.write(data)
        await stream.close_input()

    reader = stream.process.stdout
    assert reader is not None  # noqa: S101 - it was opened as a pipe
    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        reading = group.create_task(reader.read())
    return reading.result()
