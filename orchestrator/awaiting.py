"""I/O: waits until a unit serves: a worker's first token, a gateway that answers. All ranks of a group are watched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any, NoReturn

import httpx

from orchestrator.addresses import url_host
from orchestrator.canary import AT_ONCE, Asker, NoAnswerError, judge, judge_alone
from orchestrator.cluster import Cluster
from orchestrator.engines.probe import is_alive, probe
from orchestrator.execute import EffectError, Progress, Report
from orchestrator.expand import Desired, DesiredUnit
from orchestrator.kinds import pinned_dimensions
from orchestrator.launch import ABANDON_GRACE_S
from orchestrator.node.client import ShimError
from orchestrator.node.reports import UnitReport
from orchestrator.plan import AwaitReady
from orchestrator.readiness import gateway_reports, prove, worker_readiness
from orchestrator.records import PORT_LABEL, exit_words
from orchestrator.references import References
from orchestrator.transport.base import TransportError
from schemas.base import NodeName, UnitId
from schemas.exits import RANK_LOST
from schemas.unit import EngineSpec, GatewaySpec, WatcherSpec, WorkerSpec, is_group, slot_of, unit_id
from schemas.verdict import Verdict

POLL_S = 0.2
"""Between two looks at a unit that is loading; a small model is ready within a second."""
LOG_TAIL_LINES = 15
LOOK_S = 2.0
"""Between two looks at the ranks while their group is asked."""
END_S = 15.0
"""For a group to end after its canary has failed."""

Watched = tuple[NodeName, UnitId]


class Awaiter:
    """Waits for units of one stack."""

    def __init__(self, cluster: Cluster, desired: Desired, references: References) -> None:
        self._cluster = cluster
        self._desired = desired
        self._references = references
        self._reasons: dict[UnitId, str] = {}
        """Why an engine that is alive gave no token, at the last try."""

    async def until_ready(self, action: AwaitReady, report: Report) -> None:
        """Wait for the unit; its end, the end of another rank, or the time limit is an `EffectError`.

        A group of which one rank has ended is ended whole: none of its ranks can serve. So is one that has loaded and
        fails its canary, for which it gets the same time again.
        """
        watched: tuple[Watched, ...] = ((action.node, action.unit), *action.others)
        try:
            async with asyncio.timeout(action.timeout_s):
                url = await self._until_ready(action, watched, report)
            if url is not None:
                await self._judge_in_time(action, watched, url, report)
        except TimeoutError as error:
            raise EffectError(
                f"{action.unit} was not ready after {action.timeout_s:.0f} s; it is left as it is{self._why(action)}",
                log_tail=await self._log_tail(action.node, action.unit),
                next_step=("logs", self._cluster.stack, slot_of(action.unit)),
            ) from error
        except (TransportError, ShimError) as error:
            raise EffectError(f"{action.unit} could not be watched: {error}") from error

    async def _until_ready(self, action: AwaitReady, watched: tuple[Watched, ...], report: Report) -> str | None:
        """Return where a group answers that nobody has judged yet; None where nothing is left to do."""
        wanted = next(unit for unit in self._desired.units.values() if unit.id == action.unit)
        async with self._cluster.nodes[action.node].http() as http:
            while True:
                units = await self._look(watched)
                ended = [each for each in watched if not _is_alive(units.get(each))]
                if ended:
                    await self._end_the_rest([each for each in watched if each not in ended])
                    raise self._failure(action.unit, ended, units)
                if await self._is_ready(http, wanted, units[watched[0]], report):
                    return self._url(wanted, units[watched[0]]) if is_group(wanted.spec) else None
                await asyncio.sleep(POLL_S)

    async def _judge_in_time(self, action: AwaitReady, watched: tuple[Watched, ...], url: str, report: Report) -> None:
        try:
            async with asyncio.timeout(action.timeout_s):
                await self._judge(action, watched, url, report)
        except (TimeoutError, NoAnswerError) as error:
            if action.is_serving:
                reason = str(error) or f"not answered after {action.timeout_s:.0f} s"
                raise EffectError(
                    f"{action.unit} could not be judged now: {reason}; it serves on, and the next apply tries again"
                ) from error
            await self._end_unjudged(action, watched, url, error)

    async def _end_unjudged(
        self, action: AwaitReady, watched: tuple[Watched, ...], url: str, error: TimeoutError | NoAnswerError
    ) -> NoReturn:
        """End a group that nobody was sent to yet and that gave no answers to judge it by."""
        if isinstance(error, TimeoutError):
            await self._refuse(action, watched, url, f"not answered after {action.timeout_s:.0f} s")
            raise EffectError(
                f"{action.unit} has loaded, and had not answered its canary after {action.timeout_s:.0f} s: it was "
                "ended; raise its ready_timeout_s, or lower long_tokens of sharding.canary",
                next_step=("logs", self._cluster.stack, slot_of(action.unit)),
            ) from error
        await self._refuse(action, watched, url, f"not answered: {error}")
        raise EffectError(
            f"{action.unit} was asked known prompts and did not answer: {error}; it was ended. "
            "With sharding.canary: off it is routed to without being asked",
            next_step=("logs", self._cluster.stack, slot_of(action.unit)),
        ) from error

    async def _judge(self, action: AwaitReady, watched: tuple[Watched, ...], url: str, report: Report) -> None:
        """Ask a group its canary, and let it keep the verdict; one that fails is ended, and an `EffectError`."""
        spec = self._spec(action)
        async with self._cluster.nodes[action.node].http() as http:
            asker = self._asker(http, url, action)
            verdict = await self._while_alive(action, watched, self._verdict(action, asker, spec, report))
            await asker.tell(verdict)
        if verdict.outcome == "failed":
            await self._await_end(watched)
            unrouted = "" if action.is_serving else "is not routed to, and "
            words = f"{action.unit} does not answer as one process does: it {unrouted}was ended"
            if spec.model.source.startswith("path:"):  # nobody else knows what its files should be
                words += f"; compare the files of {spec.model.name} on every node with where they came from"
                raise EffectError(words, log_tail=verdict.words)
            raise EffectError(
                words, log_tail=verdict.words, next_step=("models", "verify", self._cluster.stack, "--mend")
            )

    async def _refuse(self, action: AwaitReady, watched: tuple[Watched, ...], url: str, words: str) -> None:
        """End a group that cannot be judged, by its own hand where it hears it: its end counts as one of its own."""
        with contextlib.suppress(NoAnswerError):
            async with self._cluster.nodes[action.node].http() as http:
                await self._asker(http, url, action).tell(Verdict(outcome="failed", words=(words,)))
            await self._await_end(watched)
            return
        await self._end_the_rest(list(watched))

    def _asker(self, http: httpx.AsyncClient, url: str, action: AwaitReady) -> Asker:
        spec, token = self._spec(action), self._cluster.directories.worker_token(self._cluster.stack)
        places = min(AT_ONCE, spec.max_batch + spec.max_waiting)
        return Asker(http, url, spec.model.name, token, action.timeout_s, places)

    def _spec(self, action: AwaitReady) -> WorkerSpec:
        spec = next(unit.spec for unit in self._desired.units.values() if unit.id == action.unit)
        assert isinstance(spec, WorkerSpec)  # noqa: S101 - only workers are groups
        return spec

    async def _verdict(self, action: AwaitReady, asker: Asker, spec: WorkerSpec, report: Report) -> Verdict:
        if action.long_tokens is None:
            return Verdict(outcome="off")
        reference = None
        if not action.is_limited:
            node = self._cluster.nodes[action.node]
            reference = await self._references.find(node, spec.model, action.long_tokens)
        judged = (
            judge_alone(asker, action.long_tokens, report) if reference is None else judge(asker, reference, report)
        )
        return (await judged).model_copy(update={"asked_tokens": action.long_tokens})

    async def _while_alive(
        self, action: AwaitReady, watched: tuple[Watched, ...], work: Coroutine[Any, Any, Verdict]
    ) -> Verdict:
        """Return what the work gives; the end of a rank meanwhile is an `EffectError`."""
        judging = asyncio.create_task(work)
        try:
            while True:
                await asyncio.wait([judging], timeout=LOOK_S)
                units = await self._look(watched)
                ended = [each for each in watched if not _is_alive(units.get(each))]
                if ended:
                    await self._end_the_rest([each for each in watched if each not in ended])
                    raise self._failure(action.unit, ended, units)
                if judging.done():
                    return judging.result()
        finally:
            judging.cancel()
            await asyncio.gather(judging, return_exceptions=True)

    async def _await_end(self, watched: tuple[Watched, ...]) -> None:
        """Wait until a group that was told so has ended; it is ended by force where it does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while any(_is_alive(unit) for unit in (await self._look(watched)).values()):
                    await asyncio.sleep(POLL_S)
                return
        await self._end_the_rest(list(watched))

    def _url(self, wanted: DesiredUnit, unit: UnitReport) -> str:
        assert isinstance(wanted.spec, WorkerSpec | EngineSpec)  # noqa: S101 - others have none
        return f"http://{url_host(wanted.spec.host)}:{unit.labels.get(PORT_LABEL)}"

    async def _look(self, watched: tuple[Watched, ...]) -> Mapping[Watched, UnitReport]:
        """Ask each node once, all at the same time."""
        nodes = sorted({node for node, _ in watched})
        reports = await asyncio.gather(*(self._cluster.nodes[node].shim.report(self._cluster.stack) for node in nodes))
        return {
            (node, UnitId(unit.unit)): unit
            for node, seen in zip(nodes, reports, strict=True)
            for unit in seen.units
            if (node, UnitId(unit.unit)) in watched
        }

    async def _is_ready(self, http: httpx.AsyncClient, wanted: DesiredUnit, unit: UnitReport, report: Report) -> bool:
        spec = wanted.spec
        directories, stack = self._cluster.directories, self._cluster.stack
        if isinstance(spec, GatewaySpec):
            make, token = self._cluster.nodes[spec.node].http, directories.known_admin_token(stack)
            return unit.pid in await gateway_reports(make, spec.bind, spec.port, {unit.pid or 0}, token)
        if isinstance(spec, WatcherSpec):
            return True
        url, token = self._url(wanted, unit), directories.worker_token(stack)
        if isinstance(spec, EngineSpec):
            return await self._engine_is_ready(http, spec, url, token, report)
        readiness = await worker_readiness(http, url, token)
        if readiness is None:
            return False
        if readiness.takes_requests:
            # A model that is not in memory is not asked: that would load it.
            return not readiness.is_ready or spec.model.kind == "chat" or await self._is_proven(http, spec, url, token)
        share = readiness.progress
        done, total = (0, None) if share is None else (round(100 * share), 100)
        report(Progress(readiness.phase, done, total, "percent"))
        return False

    async def _engine_is_ready(
        self, http: httpx.AsyncClient, spec: EngineSpec, url: str, token: str, report: Report
    ) -> bool:
        """Tell whether an engine has given a real token; why not is told with the time limit."""
        if not await is_alive(http, spec, url, token):
            report(Progress("loading", 0, None, "percent"))
            return False
        reason = await probe(http, spec, url, token)
        self._reasons[unit_id(spec)] = reason or ""
        return reason is None

    async def _is_proven(self, http: httpx.AsyncClient, spec: WorkerSpec, url: str, token: str) -> bool:
        """Tell whether a worker gave a vector of the right length, or scores; another length is an `EffectError`."""
        proof = await prove(http, url, spec.model.kind, spec.model.name, token)
        self._reasons[unit_id(spec)] = proof.fault
        if proof.fault:
            return False
        for role, pinned in pinned_dimensions(self._desired, spec.service).items():
            if proof.vector and len(proof.vector) != pinned:
                raise EffectError(
                    f"{unit_id(spec)} gives vectors of {len(proof.vector)} numbers, and roles.{role}.dimensions is "
                    f"{pinned}; correct the role, or serve another model"
                )
        return True

    def _why(self, action: AwaitReady) -> str:
        reason = self._reasons.get(action.unit)
        return f"; asked for an answer it said: {reason}" if reason else ""

    async def _end_the_rest(self, alive: list[Watched]) -> None:
        async def stop(node: NodeName, unit: UnitId) -> None:
            await self._cluster.nodes[node].shim.stop(self._cluster.stack, unit, grace_s=ABANDON_GRACE_S)

        await asyncio.gather(*(stop(node, unit) for node, unit in alive), return_exceptions=True)

    def _failure(self, wanted: UnitId, ended: list[Watched], units: Mapping[Watched, UnitReport]) -> EffectError:
        """Say which unit ended and how: of several ranks the one that the others followed."""
        node, unit_id = min(ended, key=lambda each: _order_of_ends(units.get(each)))
        unit = units.get((node, unit_id))
        how = "it is gone" if unit is None else exit_words(unit) or "its lock is free"
        tail = () if unit is None else tuple(unit.log_tail.splitlines()[-LOG_TAIL_LINES:])
        whose = f"{unit_id} on {node}" if unit_id != wanted else unit_id
        next_step = ("logs", self._cluster.stack, slot_of(unit_id))
        return EffectError(f"{whose} ended before it was ready: {how}", log_tail=tail, next_step=next_step)

    async def _log_tail(self, node: NodeName, unit_id: UnitId) -> tuple[str, ...]:
        shim = self._cluster.nodes[node].shim
        try:
            copied = shim.logs(self._cluster.stack, unit_id, lines=LOG_TAIL_LINES, follow=False, this_run=True)
            async with copied as lines:
                return tuple([line.decode("utf-8", "replace").rstrip() async for line in lines])
        except (ShimError, TransportError):
            return ()  # the failure is told without it


def _is_alive(unit: UnitReport | None) -> bool:
    return unit is not None and unit.alive


def _order_of_ends(unit: UnitReport | None) -> tuple[bool, float]:
    """Return the sort key by which the cause comes first: codes from 70 on only say that another rank was lost."""
    if unit is None:
        return True, float("inf")
    return (unit.exit_code or 0) >= RANK_LOST, unit.exited_at or float("inf")
