"""I/O: reads the stack files and `routes.json` whenever they change, and swaps the routing table.

The newest good stack and the newest good routes make the table, each on its own: a broken stack file does not keep the
gateway from learning that a worker moved, nor the other way round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from runtime.gateway.isolations import Isolations
from runtime.gateway.live import Live
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import RoutingTable, identity_of
from runtime.gateway.security.guard import Guard
from runtime.gateway.security.key_files import KeySource
from runtime.gateway.security.rules import Rules
from runtime.gateway.watch import watch_files
from schemas.base import UnitId
from schemas.problems import ConfigurationError, Problem
from schemas.routes import Instance, Routes
from schemas.stack import Stack

log = logging.getLogger(__name__)


class Compose(Protocol):
    """Composes a stack from its files; raises `ConfigurationError`."""

    def __call__(self, conf: Path, stack: str, overrides: Sequence[str]) -> Stack: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the configuration is."""

    conf: Path
    stack: str
    routes: Path
    worker_token: str | None = field(default=None, repr=False)
    bind: str = "127.0.0.1"
    """The address that this process listens on."""
    keys: Path | None = None
    """Where the keys file is put that the stack names, on a machine that has no configuration of its own."""
    admin_token: str | None = field(default=None, repr=False)
    """What the orchestrator shows this gateway."""
    history: Path | None = None
    """Where past requests are kept; None keeps them in memory."""


class Reloader:
    """Keeps `Live` up to date. Everything but reading files happens on the event loop."""

    def __init__(
        self,
        sources: Sources,
        live: Live,
        pool: Pool,
        metrics: Metrics,
        compose: Compose,
        on_table: Callable[[RoutingTable], None],
        guard: Guard,
        isolations: Isolations,
    ) -> None:
        """`on_table` is called with every new table, once the pool knows its endpoints and it is served."""
        self._isolations = isolations
        self._on_table = on_table
        self._guard = guard
        self._key_source = KeySource(sources.conf, sources.bind, sources.admin_token, sources.keys)
        self._sources = sources
        self._live = live
        self._pool = pool
        self._metrics = metrics
        self._compose = compose
        self._stack: Stack | None = None
        self._routes: Routes | None = None
        self._written: tuple[int, int] | None = None
        """What tells one writing of `routes.json` from another, also of the same text."""
        self._replaced_since: dict[UnitId, float] = {}
        """When each instance that is being replaced was first seen so, by the event loop's clock."""
        self._lock = asyncio.Lock()
        self._readings: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow the files until cancelled."""
        conf, routes = self._sources.conf, self._sources.routes
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(conf, "*.yaml", is_recursive=True))
            tasks.create_task(self._watch(routes.parent, routes.name, is_recursive=False))
            if self._sources.keys is not None:
                tasks.create_task(self._watch(self._sources.keys.parent, self._sources.keys.name, is_recursive=False))
            while True:
                await self._changed.wait()
                # Cleared first: a change during the reading below causes another one.
                self._changed.clear()
                await self.reload()

    async def reload(self) -> None:
        """Read everything now. Problems are kept in `Live`; nothing is raised.

        What was begun is done, whoever leaves meanwhile: threads that read cannot be called back, and two at once would
        overtake each other.
        """
        reading = asyncio.create_task(self._reload())
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)
        await asyncio.shield(reading)

    async def _reload(self) -> None:
        async with self._lock:
            written = await asyncio.to_thread(self._look_at_routes)
            routes, problems = await asyncio.to_thread(self._read_routes)
            conf = Path(routes.conf) if routes is not None and routes.conf is not None else self._sources.conf
            overrides = routes.overrides if routes else ()
            self._replaced_since = self._still_replaced(routes, asyncio.get_running_loop().time())
            before = frozenset(self._routes.instances if self._routes else ())
            stack, stack_problems = await asyncio.to_thread(self._read_stack, conf, overrides)
            try:
                # Thousands of instances take a while: the loop goes on serving meanwhile.
                try:
                    table = await asyncio.to_thread(self._build, stack, routes)
                except Exception as error:
                    if stack == self._stack:
                        raise
                    # The routes may still be good: workers that moved are followed with the last good stack.
                    log.exception("building the routing table of new files failed")
                    stack_problems = (*stack_problems, _failed(conf, "building the routing table", error))
                    stack = self._stack
                    table = await asyncio.to_thread(self._build, stack, routes)
                rules, key_problems = await asyncio.to_thread(self._read_rules, stack)
                self._swap(table, stack, routes, (*stack_problems, *problems, *key_problems))
                # Behind the table, and before anything else happens: what is new to it is judged by the new rules.
                if rules is not None:
                    self._guard.adopt(rules)
            except Exception as error:
                # A table that cannot be built must not end the following of files.
                log.exception("building the routing table failed")
                self._note((_failed(self._sources.conf, "building the routing table", error),))
            else:
                if routes is not None and written != self._written and not problems:
                    self._renew(routes, before)
                self._written = written
                await self._isolations.save()

    async def _watch(self, directory: Path, pattern: str, *, is_recursive: bool) -> None:
        await watch_files(
            directory,
            pattern,
            is_recursive=is_recursive,
            on_change=self._changed.set,
            on_restart=self._metrics.watch_restart,
        )

    def _build(self, stack: Stack | None, routes: Routes | None) -> RoutingTable | None:
        """Return the table of what was read; None where nothing is new."""
        is_changed = (stack, routes) != (self._stack, self._routes) or self._live.table is None
        if stack is None or not is_changed:
            return None
        return build_table(
            stack,
            routes,
            environ=os.environ,
            worker_token=self._sources.worker_token,
            replaced_since=self._replaced_since,
        )

    def _still_replaced(self, routes: Routes | None, now: float) -> dict[UnitId, float]:
        replacing = [entry.unit for entry in routes.instances if entry.state == "replacing"] if routes else []
        return {unit: self._replaced_since.get(unit, now) for unit in replacing}

    def _swap(
        self,
        table: RoutingTable | None,
        stack: Stack | None,
        routes: Routes | None,
        problems: tuple[Problem, ...],
    ) -> None:
        live = self._live
        self._note(problems)
        self._stack, self._routes = stack, routes
        if table is None:
            return
        self._pool.adopt(table)
        self._isolations.restore()
        live.table = table
        live.loaded_at = time.time()
        live.reloads += 1
        self._on_table(table)
        log.info("configuration taken over: generation=%d digest=%s", table.generation, table.digest)

    def _renew(self, routes: Routes, before: frozenset[Instance]) -> None:
        """Give instances a new start: the orchestrator writes their entries once it has seen them answer.

        A worker that was killed comes back at the same address, so its breaker would keep it out for minutes; its entry
        is written again as it was. Where other entries changed, the file was written for them.
        """
        written = frozenset(routes.instances)
        started = written if written == before else written - before
        self._pool.renew([identity_of(instance) for instance in started if instance.state == "ready"])

    def _note(self, problems: tuple[Problem, ...]) -> None:
        """Record what is wrong with the newest files."""
        live = self._live
        if problems and problems != live.problems:
            for problem in problems:
                log.warning("configuration not taken over: %s", problem)
        elif live.problems and not problems:
            log.info("configuration is good again")
        live.problems = problems
        live.failed_reloads += bool(problems)
        self._metrics.reload(is_good=not problems)

    def _look_at_routes(self) -> tuple[int, int] | None:
        # Taken before the reading: a file that is replaced in between is then read once more.
        try:
            state = self._sources.routes.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino

    def _read_routes(self) -> tuple[Routes | None, tuple[Problem, ...]]:
        """Return the newest good routes, and what is wrong with the file."""
        path = self._sources.routes
        try:
            routes = Routes.from_json(path.read_bytes())
        except FileNotFoundError:
            if self._routes is None:
                # Nothing was applied yet: helpers are served.
                return None, ()
            return self._routes, (Problem(file=str(path), message="the file is gone"),)
        except OSError as error:
            return self._routes, (Problem(file=str(path), message=f"cannot be read: {error.strerror}"),)
        except ValidationError as error:
            return self._routes, tuple(_problem(path, detail["loc"], detail["msg"]) for detail in error.errors())
        if routes.stack != self._sources.stack:
            message = f"is of the stack '{routes.stack}', this gateway serves '{self._sources.stack}'"
            return self._routes, (Problem(file=str(path), key="stack", message=message),)
        return routes, ()

    def _read_stack(self, conf: Path, overrides: Sequence[str]) -> tuple[Stack | None, tuple[Problem, ...]]:
        """Return the newest good stack, and what is wrong with the files."""
        try:
            stack = self._compose(conf, self._sources.stack, overrides)
            conflict = self._key_source.conflict(stack)
            return (stack, ()) if conflict is None else (self._stack, (conflict,))
        except ConfigurationError as error:
            return self._stack, error.problems
        except Exception as error:
            # Whatever a file does to the composing library, the last good table is served.
            log.exception("composing failed")
            return self._stack, (_failed(conf, "composing", error),)

    def _read_rules(self, stack: Stack | None) -> tuple[Rules | None, tuple[Problem, ...]]:
        return (None, ()) if stack is None else self._key_source.read(stack)


def compose_stack(conf: Path, stack: str, overrides: Sequence[str]) -> Stack:
    """Compose a stack with Hydra, which is imported only when it is needed."""
    from schemas.compose import compose

    return compose(conf, stack, overrides).stack


def _failed(conf: Path, what: str, error: Exception) -> Problem:
    return Problem(file=str(conf), message=f"{what} failed: {type(error).__name__}: {error}")


def _problem(path: Path, location: Sequence[int | str], message: str) -> Problem:
    return Problem(file=str(path), key=".".join(str(part) for part in location), message=message)
