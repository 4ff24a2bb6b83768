"""I/O: what rank 0 and the others have in common: how a group forms, beats and notices silence."""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.worker.group import wire
from runtime.worker.group.sharded import CONNECT_S
from runtime.worker.settings import Group, Settings
from schemas.messages import Phase, WorkerMemory

FORM_S = 120.0
"""What the ranks of a launch get to find each other: their machines start them one after another."""
TICK_S = 1.0
HEARTBEAT_S = 5.0
SILENCE_S = 15.0
"""A rank that says nothing for so long is stopped or cut off."""

Pulse = Callable[[], tuple[Phase, float | None, WorkerMemory]]
"""Tells a process's phase, its progress while it loads, and its memory."""


@dataclass(frozen=True, slots=True)
class End:
    """Why the group ends."""

    code: int
    """One of `schemas.exits`."""
    message: str


@dataclass(slots=True)
class Silence:
    """Follows when a rank was last heard."""

    last: float
    """Seconds on the monotonic clock."""
    phase: Phase = "starting"

    def heard(self, now: float) -> None:
        """Note a message."""
        self.last = now

    def age_s(self, now: float) -> float:
        """Return the seconds since the last message."""
        return max(0.0, now - self.last)

    def is_over(self, now: float) -> bool:
        """Tell whether the rank was silent for too long; while it joins its interpreter is locked."""
        return self.age_s(now) > (CONNECT_S + SILENCE_S if self.phase == "joining" else SILENCE_S)


def hello(settings: Settings, group: Group, identity: wire.Identity) -> wire.Hello:
    """Build the first message of a rank."""
    shape = wire.Shape(
        size=group.size,
        backend=group.backend,
        strategy=group.strategy,
        split=group.split,
        max_batch=settings.max_batch,
        max_context=settings.max_context,
        prompt_cache_bytes=settings.prompt_cache_bytes,
    )
    return wire.Hello(rank=group.rank, launch=group.launch, shape=shape, identity=identity)
