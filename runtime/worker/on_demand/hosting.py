"""I/O: what serves a worker's requests: an engine that is always there, or one that is loaded when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

from runtime.worker.described import Described
from runtime.worker.gate import Gate
from schemas.messages import WorkerReadiness, WorkerStatus


@dataclass(frozen=True, slots=True)
class Call:
    """What a request says of itself apart from its body."""

    wait_s: float = 0.0
    """How long its client waits for a model that is not in memory."""
    is_probe: bool = False
    """It only looks whether somebody answers: it loads nothing and counts as no use."""


class Loadable(Protocol):
    """An engine, made for one load: `start` begins it, `drain` ends it and leaves nothing of the model behind."""

    gate: Gate

    @property
    def failure(self) -> str | None:
        """Why it ended by itself; None while it did not."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether its thread lives."""
        ...

    def start(self) -> None:
        """Load the model in the background."""
        ...

    def readiness(self) -> WorkerReadiness:
        """Report whether it serves; also before the start."""
        ...

    def status(self) -> WorkerStatus:
        """Report everything; also before the start."""
        ...

    def describe(self) -> Described | None:
        """Tell what is known of the model; None before it is loaded."""
        ...

    async def drain(self) -> None:
        """Let requests under way finish, then end them and the thread."""
        ...


E = TypeVar("E", bound=Loadable)
E_co = TypeVar("E_co", bound=Loadable, covariant=True)
Make = Callable[[Callable[[], None]], E]
"""Makes an engine that calls back on the loop when its thread has ended by itself."""


class Host(Protocol[E_co]):
    """Lends the engine to requests."""

    started_at: int
    """Seconds since 1970."""

    @property
    def is_alive(self) -> bool:
        """Whether requests can be answered, now or after a load."""
        ...

    def start(self, url: str) -> None:
        """Begin; `url` is where this worker listens."""
        ...

    def holding(self, call: Call) -> AbstractAsyncContextManager[E_co]:
        """Lend the engine while the block runs; entering raises UnavailableError."""
        ...

    def readiness(self) -> WorkerReadiness:
        """Report for `/ready`."""
        ...

    def status(self) -> WorkerStatus:
        """Report for `/status`."""
        ...

    def describe(self) -> Described | None:
        """Tell what is known of the model, be it in memory or not; None before the first load."""
        ...

    def expires_at(self) -> float | None:
        """Tell when the model is dropped unless somebody asks, in seconds since the epoch; None where it stays."""
        ...

    async def drain(self) -> None:
        """Admit nobody any more and end."""
        ...


class Always(Host[E]):
    """An engine that is loaded with the process and stays."""

    def __init__(self, engine: E) -> None:
        self.engine = engine
        self.started_at = int(time.time())

    @property
    def is_alive(self) -> bool:
        """Tell whether the engine's thread lives."""
        return self.engine.is_alive

    def start(self, url: str) -> None:  # noqa: ARG002 - nobody asks it to unload
        """Load the model in the background."""
        self.engine.start()

    def holding(self, call: Call) -> AbstractAsyncContextManager[E]:  # noqa: ARG002 - the engine says what it can
        """Lend the engine."""
        return nullcontext(self.engine)

    def readiness(self) -> WorkerReadiness:
        """Report what the engine says."""
        return self.engine.readiness()

    def status(self) -> WorkerStatus:
        """Report what the engine says."""
        return self.engine.status()

    def describe(self) -> Described | None:
        """Tell what the engine says."""
        return self.engine.describe()

    def expires_at(self) -> float | None:
        """Return None: the model stays."""
        return None

    async def drain(self) -> None:
        """Drain the engine."""
        await self.engine.drain()
