"""I/O: one step of a whole group, on the generation thread of rank 0."""

import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from runtime.worker.compute import Compute
from runtime.worker.group.link_probe import LinkProbe, Measured
from runtime.worker.group.link_schedule import ALLOWANCE_S, LinkSchedule, Measure, sizes
from runtime.worker.group.pace import Pace
from runtime.worker.steps import Commands, Gauges, GroupEndedError, Insert, Step


class Announcer(Protocol):
    """Who speaks to the other ranks; its methods are safe from any thread."""

    def begin(self, number: int, commands: Commands, allowance_s: float) -> Future[None]:
        """Tell the others to compute a round; the result arrives when every rank has computed the same."""

    def begin_probe(self, number: int, measure: Measure, allowance_s: float) -> Future[None]:
        """Tell the others to measure the links; the result arrives when every rank has."""

    def finish_probe(self, number: int, measured: Measured) -> None:
        """Note what this rank has measured."""

    def finish(self, number: int, step: Step) -> None:
        """Note what this rank has computed."""

    def collapse(self, error: BaseException) -> GroupEndedError:
        """End the group for an error of this rank; return, when it has ended, what to raise."""


class LeadSteps:
    """Computes with all ranks of the group; the `Steps` of rank 0."""

    def __init__(self, lead: Announcer, own: Compute, probe: LinkProbe) -> None:
        """`own` is what this rank computes, `probe` measures its links."""
        self._lead = lead
        self._own = own
        self._probe = probe
        self._schedule = LinkSchedule()
        self._pace = Pace()
        self._number = 0

    @property
    def gauges(self) -> Gauges:
        """Return what this rank holds, and what was counted."""
        return self._own.gauges

    def step(self, commands: Commands) -> Step:
        """Compute one step on every rank; raises GroupEndedError."""
        commands = replace(commands, inserts=[_seeded(insert) for insert in commands.inserts])
        self._number += 1
        began = time.monotonic()
        verdict = self._lead.begin(self._number, commands, self._pace.begin(commands))
        try:
            step = self._own.step(commands)
        except Exception as error:
            raise self._lead.collapse(error) from error
        self._lead.finish(self._number, step)
        verdict.result()
        now = time.monotonic()
        self._pace.end(now - began, step)
        self._schedule.worked(now)
        return step

    def rest(self) -> float:
        """Measure the links where it is time; return after how many seconds to ask again. Raises GroupEndedError."""
        measure = self._schedule.due(time.monotonic())
        if measure is not None:
            self._measure(measure)
        return self._schedule.wait_s(time.monotonic())

    def _measure(self, measure: Measure) -> None:
        self._number += 1
        verdict = self._lead.begin_probe(self._number, measure, ALLOWANCE_S)
        try:
            measured = self._probe.measure(*sizes(measure))
        except Exception as error:
            raise self._lead.collapse(error) from error
        self._lead.finish_probe(self._number, measured)
        verdict.result()

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
