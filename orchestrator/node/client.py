"""I/O: ask the shim on a node, over any transport, in types."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.node.reports import DoctorReport, NodeReport, UnitLaunch, doctor_report, node_report
from orchestrator.transport.base import CommandTimeoutError, Completed, NodeTransport

QUICK_S = 30.0  # a verb that waits for nobody; a loaded node may need seconds to start Python
GIVE_UP_S = 10.0  # how long the shim waits after KILL
STDERR_CHARS = 2000

T = TypeVar("T")


class ShimError(Exception):
    """The shim refused or failed. `code` is the shim's, or `no_answer` when it did not speak its protocol.

    Codes to act on: `already_running`, `exec_failed`, `disk_full`, `python_too_old`, `no_such_unit`, `stop_timeout`.
    """

    def __init__(self, node: str, code: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node
        self.code = code


class LockedError(ShimError):
    """Somebody else holds the lock; `holder` is what they said about themselves."""

    def __init__(self, node: str, message: str, holder: Mapping[str, Any]) -> None:
        super().__init__(node, "locked", message)
        self.holder = holder


class ShimClient:
    """The shim of one node: pushed there by content hash before the first verb, then asked.

    `python` is the interpreter on the node, `state` an absolute directory there. Every method raises TransportError
    when the node could not be asked, and ShimError when the shim said no.
    """

    def __init__(self, transport: NodeTransport, python: str, state: str) -> None:
        self._transport = transport
        self._python = python
        self._state = state
        self._source = Path(__file__).with_name("shim.py").read_bytes()
        digest = hashlib.sha256(self._source).hexdigest()[:16]
        self._path = f"{state}/shim/{digest}/shim.py"
        self._is_there = False
        self._pushing = asyncio.Lock()
        self._by: Mapping[str, str | int] = {}

    def signed(self, actor: str, generation: int) -> ShimClient:
        """Return a client whose changes are recorded on the node as of this actor and this apply."""
        signed = copy.copy(self)
        signed._by = {"actor": actor, "generation": generation}
        return signed

    async def start(self, launch: UnitLaunch) -> int:
        """Start a unit and return its pid; its program has been exec'd."""
        # Orphans of an earlier run are ended first, which may take their whole grace.
        timeout_s = QUICK_S + launch.grace_s + GIVE_UP_S
        return await self._ask("start", launch.request(), timeout_s, lambda answer: int(answer["pid"]))

    async def stop(self, stack: str, unit: str, *, grace_s: float) -> bool:
        """End a unit and return whether it was running; its lock is free and its process group gone."""
        request = {"stack": stack, "unit": unit, "grace_s": grace_s}
        # The grace counts twice: once for the unit, once for orphans it may have left.
        timeout_s = QUICK_S + 2 * (grace_s + GIVE_UP_S)
        return await self._ask("stop", request, timeout_s, lambda answer: bool(answer["was_running"]))

    async def report(self, stack: str | None, ports: Iterable[int] = ()) -> NodeReport:
        """Report the units of a stack, or of all; who listens on the asked TCP ports; and the node."""
        return await self._ask("list", {"stack": stack, "ports": sorted(ports)}, QUICK_S, node_report)

    async def gc(self, stack: str, keep: Collection[str]) -> tuple[str, ...]:
        """Remove what dead units of a stack left, but for those in `keep`, and return the ids removed."""
        request = {"stack": stack, "keep": sorted(keep)}
        return await self._ask("gc", request, QUICK_S, lambda answer: tuple(answer["removed"]))

    async def forgive(self, stack: str, units: Collection[str]) -> tuple[str, ...]:
        """Let the crashes of some units so far count no more, and return the units that had any."""
        request = {"stack": stack, "units": sorted(units)}
        return await self._ask("forgive", request, QUICK_S, lambda answer: tuple(answer["forgiven"]))

    async def audit(self, stack: str | None, lines: int) -> tuple[Mapping[str, Any], ...]:
        """Return the last lines of what was done on the node, oldest first, for one stack or for all."""
        request = {"stack": stack, "lines": lines}
        return await self._ask("audit", request, QUICK_S, lambda answer: tuple(answer["lines"]))

    @asynccontextmanager
    async def watch(self, stack: str) -> AsyncIterator[AsyncIterator[Mapping[str, str]]]:
        """Give an iterator over the living units of a stack, `{unit: launch}`: as they are, and after each change.

        It ends with the connection; what lived meanwhile is then unknown.
        """
        async with self._transport.stream(await self._argv("watch"), input=self._encode({"stack": stack})) as stream:

            async def read() -> AsyncIterator[Mapping[str, str]]:
                async for line in stream:
                    yield self._answer(Completed(0, line, b""), lambda answer: dict(answer["alive"]))

            yield read()

    async def doctor(self) -> DoctorReport:
        """Check what supervision needs of the node."""
        return await self._ask("doctor", {}, QUICK_S, doctor_report)

    @asynccontextmanager
    async def logs(self, stack: str, unit: str, *, lines: int, follow: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give an iterator over the last `lines` lines and, with `follow`, over what comes until the unit has ended."""
        request = {"stack": stack, "unit": unit, "lines": lines, "follow": follow}
        async with self._transport.stream(await self._argv("logs"), input=self._encode(request)) as stream:

            async def copy() -> AsyncIterator[bytes]:
                held: bytes | None = None  # a refusal is the only line there is; a log's first line may look like one
                is_first = True
                async for line in stream:
                    if held is not None:
                        yield held
                        held = None
                    if is_first and line.startswith(b'{"version"'):
                        held = line
                    else:
                        yield line
                    is_first = False
                exit_code = await stream.wait()
                if exit_code:
                    self._answer(Completed(exit_code, held or b"", b""), dict)
                if held is not None:
                    yield held

            yield copy()

    @asynccontextmanager
    async def lock(self, name: str, holder: Mapping[str, Any]) -> AsyncIterator[None]:
        """Hold a lock of this node while the context lasts; it vanishes with us, or with the connection.

        Raises LockedError with the other holder's `holder`.
        """
        request = {"name": name, "holder": dict(holder)}
        async with self._transport.stream(await self._argv("lock"), input=self._encode(request)) as stream:
            try:
                async with asyncio.timeout(QUICK_S):
                    line = await anext(aiter(stream), b"")
            except TimeoutError as error:
                raise CommandTimeoutError(self._transport.node, f"no answer about the lock {name}") from error
            self._answer(Completed(0, line, b""), dict)
            yield  # leaving the stream kills the holder, which is how a lock is given back

    async def _argv(self, verb: str) -> list[str]:
        """Return the command of a verb, after making sure that the shim is there."""
        async with self._pushing:
            if not self._is_there:
                seen = await self._transport.run(["test", "-f", self._path], timeout_s=QUICK_S)
                if seen.exit_code:
                    await self._transport.push(self._source, self._path, mode=0o600)
                self._is_there = True
        return [self._python, self._path, verb]

    def _encode(self, request: Mapping[str, Any]) -> bytes:
        signature = {"by": dict(self._by)} if self._by else {}
        return json.dumps({"state": self._state, **signature, **request}).encode() + b"\n"

    async def _ask(
        self, verb: str, request: Mapping[str, Any], timeout_s: float, read: Callable[[Mapping[str, Any]], T]
    ) -> T:
        done = await self._transport.run(await self._argv(verb), input=self._encode(request), timeout_s=timeout_s)
        return self._answer(done, read)

    def _answer(self, done: Completed, read: Callable[[Mapping[str, Any]], T]) -> T:
        """Read the shim's answer, or raise what it means."""
        try:
            answer = json.loads(done.stdout)
            if answer["ok"]:
                return read(answer)
            error = dict(answer["error"])
            code, message, holder = str(error["code"]), str(error["message"]), dict(error.get("holder", {}))
        except (ValueError, KeyError, TypeError) as mismatch:
            self._is_there = False  # it may have been removed from the node; the next verb looks again
            said = done.stderr.decode("utf-8", "replace").strip()[-STDERR_CHARS:] or "it said nothing"
            reason = f"{self._python} {self._path} exited with {done.exit_code}: {said}"
            raise ShimError(self._transport.node, "no_answer", reason) from mismatch
        if code == "locked":
            raise LockedError(self._transport.node, message, holder)
        raise ShimError(self._transport.node, code, message)
