"""I/O: ask the shim on a node, over any transport, in types."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.node.anchors import is_anchored, unanchored, verb_argv
from orchestrator.node.reports import DoctorReport, NodeReport, UnitLaunch, doctor_report, node_report
from orchestrator.node.site import Site, forget_site, site_of
from orchestrator.transport.base import CommandTimeoutError, Completed, NodeTransport, NodeUnreachableError, Stream

QUICK_S = 30.0  # a verb that waits for nobody; a loaded node may need seconds to start Python
GIVE_UP_S = 10.0  # how long the shim waits after KILL
STDERR_CHARS = 2000
BREATH_S = 10.0
NO_SUCH_FILE = 2  # what Python ends with when the script that it was given is missing
SILENCE_S = 60.0  # a lock whose holder has not been heard of for so long is given back by the node

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


class LockLostError(NodeUnreachableError):
    """The connection that held a lock is gone, and with it the lock: somebody else may hold it now."""


class ShimClient:
    """The shim of one node: pushed there by content hash where it is missing, and asked.

    Without a `site` the node is asked for it before the first verb. Every method raises TransportError when the node
    could not be asked, SiteError among them, and ShimError when the shim said no.
    """

    def __init__(self, transport: NodeTransport, site: Site | None = None) -> None:
        self._transport = transport
        self._site = site
        self._source = Path(__file__).with_name("shim.py").read_bytes()
        self._digest = hashlib.sha256(self._source).hexdigest()[:16]
        self._is_there = False
        self._pushing = asyncio.Lock()
        self._by: Mapping[str, str | int] = {}

    def signed(self, actor: str, generation: int) -> ShimClient:
        """Return a client whose changes are recorded on the node as of this actor and this apply."""
        signed = copy.copy(self)
        signed._by = {"actor": actor, "generation": generation}
        return signed

    async def site(self) -> Site:
        """Return what is known of the node itself."""
        return self._site if self._site is not None else await site_of(self._transport)

    async def start(self, launch: UnitLaunch) -> int:
        """Start a unit and return its pid; its program has been exec'd."""
        # Orphans of an earlier run are ended first, which may take their whole grace.
        timeout_s = QUICK_S + launch.grace_s + GIVE_UP_S

        async def begin(site: Site) -> int:
            return await self._ask("start", launch.request(), timeout_s, lambda answer: int(answer["pid"]), site)

        site = await self.site()
        try:
            return await begin(site)
        except ShimError as error:
            if error.code != "no_answer" or not is_anchored(site):
                raise
        # Who should have parented it did not start the shim. If it did after all, the lock refuses a double.
        return await begin(unanchored(site))

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
        argv, data = await self._call("watch", {"stack": stack})
        async with self._transport.stream(argv, input=data) as stream:

            async def read() -> AsyncIterator[Mapping[str, str]]:
                async for line in stream:
                    yield self._answer(Completed(0, line, b""), lambda answer: dict(answer["alive"]))

            yield read()

    async def doctor(self) -> DoctorReport:
        """Check what supervision needs of the node."""
        return await self._ask("doctor", {}, QUICK_S, doctor_report)

    @asynccontextmanager
    async def logs(
        self, stack: str, unit: str, *, lines: int, follow: bool, this_run: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give an iterator over the last `lines` lines and, with `follow`, over what comes until the unit has ended.

        With `this_run` none of them was written by an earlier run of the unit.
        """
        request = {"stack": stack, "unit": unit, "lines": lines, "follow": follow, "this_run": this_run}
        argv, data = await self._call("logs", request)
        async with self._transport.stream(argv, input=data) as stream:

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

        When the connection is lost, what runs inside is cancelled and LockLostError raised. Raises LockedError with the
        other holder's `holder`.
        """
        is_far = not (await self.site()).is_local
        request = {"name": name, "holder": dict(holder), "silence_s": SILENCE_S if is_far else 0.0}
        argv, data = await self._call("lock", request)
        async with self._transport.stream(argv, input=data) as stream:
            lines = aiter(stream)
            try:
                async with asyncio.timeout(QUICK_S):
                    line = await anext(lines, b"")
                    exit_code = 0 if line else await stream.wait()
            except TimeoutError as error:
                raise CommandTimeoutError(self._transport.node, f"no answer about the lock {name}") from error
            self._answer(Completed(exit_code, line, stream.error_tail().encode()), dict)
            lost = LockLostError(self._transport.node, f"the connection that held the lock {name} was lost")
            async with _while_connected(stream, lines, lost):
                yield  # leaving the stream kills the holder, which is how a lock is given back

    async def _call(self, verb: str, request: Mapping[str, Any], site: Site | None = None) -> tuple[list[str], bytes]:
        """Return the command of a verb and its stdin, after making sure that the shim is there."""
        site = site or await self.site()
        await self._push(site)
        return self._command(verb, request, site)

    def _command(self, verb: str, request: Mapping[str, Any], site: Site) -> tuple[list[str], bytes]:
        signature = {"by": dict(self._by)} if self._by else {}
        data = json.dumps({"state": site.state, **signature, **request}).encode() + b"\n"
        return verb_argv(site, self._path(site), verb), data

    async def _push(self, site: Site) -> None:
        path = self._path(site)
        async with self._pushing:
            if not self._is_there:
                seen = await self._transport.run(["test", "-f", path], timeout_s=QUICK_S)
                if seen.exit_code:
                    await self._transport.push(self._source, path, mode=0o600)
                self._is_there = True

    def _path(self, site: Site) -> str:
        return f"{site.state}/shim/{self._digest}/shim.py"

    async def _ask(
        self,
        verb: str,
        request: Mapping[str, Any],
        timeout_s: float,
        read: Callable[[Mapping[str, Any]], T],
        site: Site | None = None,
    ) -> T:
        """Run a verb to its end. The shim is pushed only when it turns out to be missing: a look is one command.

        What parents a start may answer for a missing shim in its own words, so it is made sure of before that.
        """
        site = site or await self.site()
        if verb == "start":
            await self._push(site)
        argv, data = self._command(verb, request, site)
        done = await self._transport.run(argv, input=data, timeout_s=timeout_s)
        if done.exit_code == NO_SUCH_FILE and not done.stdout:
            self._is_there = False
            await self._push(site)
            done = await self._transport.run(argv, input=data, timeout_s=timeout_s)
        return self._answer(done, read, argv)

    def _answer(self, done: Completed, read: Callable[[Mapping[str, Any]], T], argv: Sequence[str] = ("shim",)) -> T:
        """Read the shim's answer, or raise what it means."""
        try:
            answer = json.loads(done.stdout)
            if answer["ok"]:
                return read(answer)
            error = dict(answer["error"])
            code, message, holder = str(error["code"]), str(error["message"]), dict(error.get("holder", {}))
        except (ValueError, KeyError, TypeError) as mismatch:
            self._is_there = False  # the node's Python may have been removed; the next verb looks again
            forget_site(self._transport)
            said = done.stderr.decode("utf-8", "replace").strip()[-STDERR_CHARS:] or "it said nothing"
            reason = f"{' '.join(argv)} exited with {done.exit_code}: {said}"
            raise ShimError(self._transport.node, "no_answer", reason) from mismatch
        if code == "locked":
            raise LockedError(self._transport.node, message, holder)
        raise ShimError(self._transport.node, code, message)


@asynccontextmanager
async def _while_connected(
    stream: Stream, lines: AsyncIterator[bytes], lost: NodeUnreachableError
) -> AsyncIterator[None]:
    """Keep a connection in use while the context lasts; cancel what runs inside when it ends, and raise `lost`."""
    body = asyncio.current_task()
    assert body is not None  # noqa: S101 - a coroutine runs in a task
    cancelled_before, is_lost = body.cancelling(), False

    async def listen() -> None:
        nonlocal is_lost
        async for _ in lines:
            pass
        is_lost = True
        body.cancel()

    async def breathe() -> None:
        while True:
            await asyncio.sleep(BREATH_S)
            await stream.write(b"\n")

    tasks = [asyncio.create_task(listen()), asyncio.create_task(breathe())]
    try:
        yield
        await asyncio.sleep(0)  # it was lost in the last moment: the cancellation comes here
    except asyncio.CancelledError:
        if is_lost and body.uncancel() <= cancelled_before:
            raise lost from None
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
