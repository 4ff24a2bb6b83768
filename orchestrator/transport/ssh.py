"""I/O: run commands on another machine with the system's `ssh`, over one shared connection a node."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from orchestrator.transport.base import (
    CommandTimeoutError,
    Completed,
    NodeDiskFullError,
    NodeRefusedError,
    NodeUnreachableError,
    TransportError,
)
from orchestrator.transport.processes import kill, spawn
from orchestrator.transport.ssh_stream import SshStream, exchange
from orchestrator.transport.ssh_words import (
    CONNECT_S,
    Destination,
    base_options,
    failure,
    fingerprint,
    kill_script,
    master_options,
    offending_line,
    parse_stderr,
    push_argv,
    remote_command,
)

CONFIG_VARIABLE = "ORCHESTRATE_SSH_CONFIG"
LOGIN_S = CONNECT_S + 20.0  # connecting, then keys and the account's shell on a loaded machine
REUSE_S = 10.0  # a shared connection of an earlier command that takes longer hangs
KILL_S = 5.0  # for killing what a given-up command left on the node
PUSH_S = 60.0
STALL_S = 60.0
PIECE_BYTES = 1024 * 1024
AT_ONCE = 6  # commands over one connection; sshd allows 10 sessions (MaxSessions), streams take some of them


class SshTransport:
    """A node behind ssh. Host keys are always checked, against `known_hosts` and the user's own files.

    `config` replaces the user's ssh configuration. Commands share one connection, kept for a minute after the last; one
    that died or hangs is given up and replaced. Use it on one event loop.
    """

    def __init__(self, to: Destination, known_hosts: Path, config: str | None = None) -> None:
        self._to = to
        self._known_hosts = known_hosts
        self._config = ["-F", config] if config else []
        identity = "\0".join([to.host, to.user or "", str(known_hosts), config or ""])
        self.socket = socket_directory() / hashlib.sha256(identity.encode()).hexdigest()[:20]
        self._argv: list[str] = []
        self._is_open = False
        self._opening = asyncio.Lock()
        self._failed: tuple[float, TransportError] | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)

    @property
    def node(self) -> str:
        """Name the node."""
        return self._to.node

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        """Run a command to its end; see `NodeTransport.run`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._open()  # before the slot: who waits for a slot has not failed to connect
                async with self._slots:
                    return await self._run(argv, input)
        except TimeoutError as error:
            raise CommandTimeoutError(self.node, f"{argv[0]} was given up after {timeout_s:g} s") from error

    async def read(self, path: str, *, timeout_s: float) -> bytes | None:
        """Return a file's content; see `NodeTransport.read`."""
        done = await self.run(["cat", path], timeout_s=timeout_s)
        return done.stdout if done.exit_code == 0 else None

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        """Put a file; see `NodeTransport.push`."""
        done = await self.run(push_argv(path, mode, len(data), is_durable=True), input=data, timeout_s=PUSH_S)
        self._check_pushed(path, done.exit_code, done.stderr.decode("utf-8", "replace"))

    async def push_file(self, local_path: str, path: str, *, mode: int, report: Callable[[int], None]) -> None:
        """Send a file; see `NodeTransport.push_file`."""
        source = await asyncio.to_thread(open, local_path, "rb")
        with source:
            size = os.fstat(source.fileno()).st_size
            async with self.stream(push_argv(path, mode, size, is_durable=False)) as stream:
                done = 0
                try:
                    while (piece := await asyncio.to_thread(source.read, PIECE_BYTES)) and not stream.is_over():
                        async with asyncio.timeout(STALL_S):
                            await stream.write(piece)
                        done += len(piece)
                        report(done)
                    async with asyncio.timeout(STALL_S):
                        await stream.close_input()
                        exit_code = await stream.wait()
                except TimeoutError as error:
                    reason = f"sending {path} was given up: nothing was taken for {STALL_S:g} s"
                    raise CommandTimeoutError(self.node, reason) from error
                self._check_pushed(path, exit_code, stream.error_tail())

    @contextlib.asynccontextmanager
    async def stream(self, argv: Sequence[str], *, input: bytes = b"") -> AsyncIterator[SshStream]:  # noqa: A002
        """Run a command while the context lasts; see `NodeTransport.stream`."""
        await self._open()
        stream = await self._start(argv)
        try:
            await stream.write(input)
            yield stream
        finally:
            await self._end(stream)

    async def close(self) -> None:
        """Give the shared connection up; commands that run over it are lost."""
        self._is_open = False
        if self.socket.exists():
            with contextlib.suppress(TimeoutError):
                await run_here(["ssh", *self._config, *self._master(), "-O", "exit", "--", self._to.host], KILL_S)
        self._forget()

    # -- commands --------------------------------------------------------------------------------------------------

    async def _run(self, argv: Sequence[str], data: bytes) -> Completed:
        """Run a command over what is there; being cancelled kills it."""
        stream = await self._start(argv, whole=True)
        try:
            out = await exchange(stream, data)
            exit_code = await stream.wait()
            return Completed(exit_code, out.partition(f"{stream.token}\n".encode())[2], stream.parsed().text)
        except NodeUnreachableError:
            self._is_open = False
            raise
        except NodeRefusedError as error:
            self._is_open = False
            raise await self._explained(error, stream) from error
        finally:
            await self._end(stream)

    async def _start(self, argv: Sequence[str], *, whole: bool = False) -> SshStream:
        token = secrets.token_hex(8)
        try:
            process = await spawn([*self._argv, remote_command(argv, token)])
        except OSError as error:
            raise TransportError(self.node, f"cannot run ssh: {error.strerror}; install the OpenSSH client") from error
        return SshStream(process, self._to, token, whole=whole)

    async def _end(self, stream: SshStream) -> None:
        """Kill ssh, and what it has left on the node if it had not come to its end."""
        is_whole = stream.parsed().exit_code is not None
        await stream.end()
        if is_whole:
            return
        pid = stream.parsed().pid
        if pid is None or not await self._kill_there(pid, stream.token):
            self._forget()  # it may hang: who comes next makes a connection of its own

    async def _kill_there(self, pid: int, token: str) -> bool:
        """Kill a given-up command on the node, and tell whether the node answered."""
        if not self.socket.exists():
            return False
        argv = remote_command(["sh", "-c", kill_script(pid, token)], answer := secrets.token_hex(8))
        try:
            done = await run_here([*self._argv, argv], KILL_S)
        except TimeoutError:
            return False
        return parse_stderr(done.stderr, answer).exit_code is not None

    def _check_pushed(self, path: str, exit_code: int, said: str) -> None:
        if exit_code:
            last = (said.strip().splitlines() or [f"exit code {exit_code}"])[-1]
            is_full = "No space left" in said or "quota exceeded" in said.lower()
            kind = NodeDiskFullError if is_full else TransportError
            raise kind(self.node, f"cannot write {path}: {last.rpartition(': ')[2]}")

    # -- the shared connection -------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Make sure of a connection that answers. Those who wait for one attempt share its failure."""
        asked = time.monotonic()
        async with self._opening:
            if self._is_open and self.socket.exists():
                return
            if self._failed is not None and self._failed[0] >= asked:
                raise self._failed[1]
            try:
                await self._log_in()
            except TransportError as error:
                self._failed = (time.monotonic(), error)
                raise
            self._is_open = True

    async def _log_in(self) -> None:
        if not self._argv:
            self._argv = ["ssh", *self._config, *base_options(await self._known_files()), *self._master()]
            self._argv += [*(("-l", self._to.user) if self._to.user else ()), "--", self._to.host]
        if self.socket.exists():  # left by an earlier command; what it leads to may be gone
            try:
                async with asyncio.timeout(REUSE_S):
                    await self._run(["true"], b"")
                    return
            except (TimeoutError, TransportError):
                self._forget()
        try:
            async with asyncio.timeout(LOGIN_S):
                await self._run(["true"], b"")
        except TimeoutError as error:
            raise NodeUnreachableError(
                self.node, f"{self._to.host} did not finish the login within {LOGIN_S:g} s; is it overloaded?"
            ) from error

    def _master(self) -> list[str]:
        return master_options(str(self.socket))

    def _forget(self) -> None:
        self._is_open = False
        with contextlib.suppress(OSError):
            self.socket.unlink()

    async def _known_files(self) -> list[str]:
        """Return the known-hosts files: ours, then those that the user's configuration names for this host."""
        try:
            settings = await effective_settings(self._to, self._config)
        except TimeoutError as error:
            raise NodeRefusedError(self.node, "ssh does not say its settings: ssh -G hangs") from error
        except ValueError as error:
            raise NodeRefusedError(self.node, f"ssh cannot use its configuration: {error}") from error
        return [str(self._known_hosts), *settings.get("userknownhostsfile", "").split()]

    async def _explained(self, error: NodeRefusedError, stream: SshStream) -> TransportError:
        """Return a changed host key's error with the fingerprint that is trusted."""
        text = stream.parsed().before.decode("utf-8", "replace")
        place = offending_line(text)
        if place is None or stream.process.returncode is None:
            return error
        trusted = await asyncio.to_thread(_fingerprint_at, *place)
        return failure(self._to, text, stream.process.returncode, trusted)


async def run_here(argv: Sequence[str], timeout_s: float) -> Completed:
    """Run one of ssh's own tools on this machine to its end. Raises TimeoutError and OSError."""
    process = await spawn(argv)
    try:
        async with asyncio.timeout(timeout_s):
            out, errors = await process.communicate(b"")
    finally:
        await kill(process)
    return Completed(process.returncode or 0, out, errors)


async def effective_settings(to: Destination, config: Sequence[str]) -> dict[str, str]:
    """Return what `ssh -G` says of a host: setting in lower case -> value.

    Raises TimeoutError, and ValueError with ssh's words for a configuration that it cannot use.
    """
    user = ["-l", to.user] if to.user else []
    done = await run_here(["ssh", *config, *user, "-G", "--", to.host], KILL_S)
    if done.exit_code:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip())
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def socket_directory() -> Path:
    """Return a directory that is ours alone and has a short name: paths of sockets end at about 100 bytes."""
    shared = Path("/tmp") / f"orchestrate-{os.getuid()}"  # noqa: S108 - checked to be ours and closed to others
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            shared.mkdir(mode=0o700)
        seen = shared.lstat()
        if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077:
            return shared
    return Path(tempfile.mkdtemp(prefix="orchestrate-", dir="/tmp"))


def _fingerprint_at(file: str, line: int) -> str | None:
    try:
        words = Path(file).read_text("utf-8", "replace").splitlines()[line - 1].split()
    except (OSError, IndexError):
        return None
    blobs = [word for word in words if word.startswith("AAAA")]
    return fingerprint(blobs[0]) if blobs else None
