"""I/O: what rank 0's generation thread does for its group: it loads, and tells the others of each round first.

Everything that is known of the other ranks belongs to the event loop: it is handed over, and a future comes back.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from runtime.worker.compute import Compute
from runtime.worker.group import sharded, wire
from runtime.worker.group.lead_rounds import Pending
from runtime.worker.group.lead_steps import LeadSteps
from runtime.worker.group.link_probe import LinkProbe, Measured
from runtime.worker.group.link_schedule import Measure, sizes
from runtime.worker.model import LoadedModel
from runtime.worker.prompt_cache import open_prompt_cache
from runtime.worker.settings import Group, Settings
from runtime.worker.steps import Commands, GroupEndedError, Step
from schemas import exits

logger = logging.getLogger(__name__)


class GroupLoop(Protocol):
    """Rank 0's side on the event loop; its methods run there."""

    formed: Future[None]
    """All ranks are there and alike."""
    loaded: Future[None]
    """All others have their part of the model."""
    ended: Future[None]
    """Never has a result: its exception tells that the group has ended, and why."""

    def beat(self) -> None:
        """Tell the others how this rank is."""

    def begin(self, pending: Pending, frame: bytes) -> None:
        """Send a round to the others."""

    def take_done(self, rank: int, number: int, digest: str, seconds: float | None = None) -> None:
        """Note what a rank has computed."""

    def suspect(self, code: int, message: str) -> None:
        """End the group soon: a message of another rank may still tell the cause."""


class LeadThread:
    """Owned by the generation thread."""

    def __init__(self, side: GroupLoop, loop: asyncio.AbstractEventLoop, settings: Settings, group: Group) -> None:
        self._side = side
        self._loop = loop
        self._settings = settings
        self._group = group
        self._joined: Any = None

    def load(self, directory: Path, max_context: int | None, progress: Callable[[float], None]) -> LoadedModel:
        """Join the others and load this rank's part; return when every rank has its own."""
        try:
            # Once the others are there, so that they hear of a model that cannot be spread.
            self._side.formed.result()
            sharded.check(self._group, directory)
            joined = sharded.join(self._group)
            progress(0.0)
            self._loop.call_soon_threadsafe(self._side.beat)
            model = sharded.load_part(self._group, joined, directory, max_context, progress)
        except GroupEndedError:
            raise
        except Exception as error:
            raise self.collapse(error) from error
        self._joined = joined
        self._side.loaded.result()
        return model

    def make_steps(self, model: LoadedModel) -> LeadSteps:
        """Return what computes with all ranks."""
        kept = open_prompt_cache(self._settings, sharded.largest(self._joined))
        own = Compute(model, agree=sharded.agreement(self._joined), kept=kept)
        return LeadSteps(self, own, LinkProbe(self._joined))

    def begin(self, number: int, commands: Commands, allowance_s: float) -> Future[None]:
        """Tell the others to compute a round; the result arrives when every rank has computed the same."""
        pending = Pending(number, time.monotonic(), allowance_s, Future())
        frame = wire.encode(wire.round_of(number, commands))
        self._loop.call_soon_threadsafe(self._side.begin, pending, frame)
        return pending.verdict

    def finish(self, number: int, step: Step) -> None:
        """Note what this rank has computed."""
        self._loop.call_soon_threadsafe(self._side.take_done, 0, number, wire.digest(step))

    def begin_probe(self, number: int, measure: Measure, allowance_s: float) -> Future[None]:
        """Tell the others to measure the links; the result arrives when every rank has."""
        pending = Pending(number, time.monotonic(), allowance_s, Future(), measure)
        numbers, sums = sizes(measure)
        frame = wire.encode(wire.Probe(number=number, numbers=numbers, sums=sums))
        self._loop.call_soon_threadsafe(self._side.begin, pending, frame)
        return pending.verdict

    def finish_probe(self, number: int, measured: Measured) -> None:
        """Note what this rank has measured."""
        digest = wire.digest_of_sums(is_right=measured.is_right)
        self._loop.call_soon_threadsafe(self._side.take_done, 0, number, digest, measured.seconds)

    def collapse(self, error: BaseException) -> GroupEndedError:
        """End the group for an error of this rank; return, when it has ended, what to raise."""
        sharded.give_up(self._group)
        code = sharded.exit_code_of(error)
        if code == exits.RANK_FAILED:
            logger.error("rank 0 failed", exc_info=error)
        words = "the connection between the ranks broke" if code == exits.RANK_LOST else f"rank 0 failed: {error}"
        self._loop.call_soon_threadsafe(self._side.suspect, code, words)
        return GroupEndedError(str(self._side.ended.exception()))
