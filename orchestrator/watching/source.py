"""I/O: what a watcher keeps a stack to: its files as applied, and while these are bad what was good before."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from orchestrator.controller import Controller
from orchestrator.planned import Wanted
from orchestrator.rollback import RollbackError
from orchestrator.watching.events import Signature, signature
from schemas.problems import ConfigurationError


class StackDownError(Exception):
    """A command has taken the stack down: there is nothing to watch any more."""


class Source:
    """What is wanted, composed again only when something it is made from has changed."""

    def __init__(self, control: Controller) -> None:
        self._control = control
        self._first_generation = control.journal.last_generation()
        self._made_from: tuple[Signature, Signature] | None = None
        self._newest: Wanted | None = None
        self._problems: tuple[str, ...] = ()
        self.good: Wanted | None = None
        """What was wanted when it could last be planned."""

    def has_changed(self) -> bool:
        """Tell whether something was written since it was composed."""
        return self._signature() != self._made_from

    def forget(self) -> None:
        """Compose again at the next question, whatever the files look like."""
        self._made_from = None

    async def wanted(self) -> tuple[Wanted | None, tuple[str, ...]]:
        """Return what is wanted, and what is wrong with the files; while they are bad, what was good before.

        Raises `StackDownError`.
        """
        made_from = await asyncio.to_thread(self._signature)
        if made_from == self._made_from:
            return self._newest, self._problems
        self._end_where_it_is_down()
        try:
            self._newest, self._problems = await self._control.wanted_as_applied(), ()
        except (ConfigurationError, RollbackError) as error:
            found = error.problems if isinstance(error, ConfigurationError) else (error,)
            self._problems = tuple(str(problem) for problem in found)
            before = self.good or await self._control.wanted_last()
            self._newest = replace(before, is_current=False) if before is not None else None
        self._made_from = made_from
        return self._newest, self._problems

    def _signature(self) -> tuple[Signature, Signature]:
        return signature(self._control.conf), signature(self._control.journal.directory, "journal.jsonl")

    def _end_where_it_is_down(self) -> None:
        last = next(self._control.journal.latest(), None)
        if last is not None and last.generation > self._first_generation and last.command == "down":
            raise StackDownError(f"{self._control.stack} was taken down by {last.actor}; nothing is left to watch.")
