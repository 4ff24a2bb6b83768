"""Pure: what a worker tells requests that it cannot take now, and when they may come back."""

import math

from runtime.worker.errors import UnavailableError
from schemas.messages import Phase
from schemas.on_demand import Loading

SOON_S = 5
"""When to come back where nobody can reckon it: a start, an end, a place with another worker."""
LONGEST_RETRY_S = 60
"""An estimate of the future is no better than that."""


def retry_after_s(estimate_s: float) -> int:
    """Return an estimate as a client is told it: whole seconds between 1 and LONGEST_RETRY_S."""
    return max(1, min(LONGEST_RETRY_S, math.ceil(estimate_s)))


def ending(message: str = "The worker is shutting down.") -> UnavailableError:
    """Refuse at the worker's end."""
    return UnavailableError(message, code="shutting_down", retry_after_s=SOON_S)


def broken(message: str) -> UnavailableError:
    """Refuse where the model has stopped working."""
    return UnavailableError(message, code="model_failed", retry_after_s=SOON_S)


def starting(phase: Phase, progress: float | None) -> UnavailableError:
    """Refuse before the worker's first token; `progress` is the share of the weights in memory."""
    done = "" if progress is None else f" ({progress:.0%})"
    return UnavailableError(f"The model is {phase}{done}.", code="model_loading", retry_after_s=SOON_S)


def full(estimate_s: float, message: str = "The queue is full.", *, loading: Loading | None = None) -> UnavailableError:
    """Refuse where all places are taken; in about `estimate_s` one is free."""
    return UnavailableError(message, code="queue_full", retry_after_s=retry_after_s(estimate_s), loading=loading)
