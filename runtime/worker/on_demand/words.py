"""Pure: what a worker that loads on demand says of its model: to clients that cannot have it yet, and to reports."""

from __future__ import annotations

import math

from runtime.worker.errors import UnavailableError
from runtime.worker.on_demand.room import left_s
from runtime.worker.refusals import full, retry_after_s
from schemas.messages import Phase
from schemas.on_demand import Loading

NO_ROOM_RETRY_S = 5
"""When to come back where other models hold the memory; nobody knows for how long."""


def loading(phase: Phase, expected_s: float, elapsed_s: float, progress: float | None) -> Loading:
    """Say how far a load under way is."""
    return Loading(phase=phase, progress=progress, eta_s=round(left_s(expected_s, elapsed_s, progress), 1))


def absent(found: Loading) -> UnavailableError:
    """Refuse a request that only looks."""
    return UnavailableError(
        "The model is not in memory; a request brings it there.",
        code="model_cold" if found.eta_s is None else "model_loading",
        retry_after_s=1,
        loading=found,
    )


def crowded(found: Loading) -> UnavailableError:
    """Refuse where as many wait for the model as it will have places."""
    message = "The queue is full: no more requests can wait for the model."
    return full(found.eta_s or 1.0, message, loading=found)


def failed(reason: str, left: float) -> UnavailableError:
    """Refuse after a load that failed; in `left` seconds it may be tried again."""
    wait = max(1, math.ceil(left))
    message = f"The model could not be brought into memory: {reason} Next try in {wait} s at the earliest."
    return UnavailableError(message, code="model_failed", retry_after_s=wait)


def no_room(shortage: str, found: Loading) -> UnavailableError:
    """Refuse where others hold the memory."""
    return UnavailableError(shortage, code="no_memory", retry_after_s=NO_ROOM_RETRY_S, loading=found)


def coming(found: Loading) -> UnavailableError:
    """Refuse during a load."""
    done = "" if found.progress is None else f" ({found.progress:.0%})"
    return UnavailableError(
        f"The model is loading{done}; about {math.ceil(found.eta_s or 1.0)} s left.",
        code="model_loading",
        retry_after_s=retry_after_s(found.eta_s or 1.0),
        loading=found,
    )


def stuck(limit_s: float) -> str:
    """Say why the process ends over a load."""
    return (
        f"the load did not end within {limit_s:.0f} s and a thread cannot be ended: the process ends. "
        "Look at the disk that holds the model and at the GPU's driver."
    )
