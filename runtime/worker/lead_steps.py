"""I/O: one step of a whole group, on the generation thread of rank 0."""

import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

import mlx.core as mx

from runtime.worker.compute import CPU_PREFILL_TOKENS, GPU_PREFILL_TOKENS, Compute
from runtime.worker.pace import Pace
from runtime.worker.steps import Commands, Gauges, GroupEndedError, Insert, Step


class Announcer(Protocol):
    """Who speaks to the other ranks; its methods are safe from any thread."""

    def begin(self, number: int, commands: Commands, allowance_s: float) -> Future[None]:
        """Tell the others to compute a round; the result arrives when every rank has computed the same."""

    def finish(self, number: int, step: Step) -> None:
        """Note what this rank has computed."""

    def collapse(self, error: BaseException) -> GroupEndedError:
        """End the group for an error of this rank; return, when it has ended, what to raise."""


class LeadSteps:
    """Computes with all ranks of the group; the `Steps` of rank 0."""

    def __init__(self, lead: Announcer, own: Compute) -> None:
        """`own` is what this rank computes."""
        self._lead = lead
        self._own = own
        is_on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self._pace = Pace(CPU_PREFILL_TOKENS if is_on_cpu else GPU_PREFILL_TOKENS)
        self._number = 0

    @property
    def gauges(self) -> Gauges:
        """Return what this rank holds, and what was counted."""
        return self._own.gauges

    def step(self, commands: Commands) -> Step:
        """Compute one step on every rank; raises GroupEndedError."""
        commands = Commands([_seeded(insert) for insert in commands.inserts], commands.removes)
        self._number += 1
        began = time.monotonic()
        verdict = self._lead.begin(self._number, commands, self._pace.begin(commands))
        try:
            step = self._own.step(commands)
        except Exception as error:
            raise self._lead.collapse(error) from error
        self._lead.finish(self._number, step)
        verdict.result()
        self._pace.end(time.monotonic() - began, step)
        return step

    def recover(self) -> None:
        """Raise: ranks that no longer hold the same requests cannot go on together."""
        raise GroupEndedError("a round of the group failed")

    def close(self) -> None:
        """Give this rank's resources back."""
        self._own.close()


def _seeded(insert: Insert) -> Insert:
    """Draw the seed here, so that every rank draws the same tokens."""
    if insert.sampling.seed is not None:
        return insert
    return replace(insert, sampling=replace(insert.sampling, seed=secrets.randbits(63)))
