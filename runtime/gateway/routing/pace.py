"""Pure: how fast an endpoint has answered lately: for honest waiting times, for hedging, for the limit of first tokens.

One `Pace` belongs to one endpoint and is changed with every answer; nothing here looks at a clock.
"""

from __future__ import annotations

from collections import deque

LEAST_FIRST_S = 30.0
"""Seconds to the first content that every prompt is allowed. These three: the gateway's specification."""
BASE_FIRST_S = 10.0
"""Seconds on top of what reading the prompt takes."""
MOST_FIRST_S = 600.0
UNKNOWN_RATE = 200.0
"""Bytes of request body a second (about 50 tokens) of an endpoint that has not shown yet how fast it reads prompts."""
LEAST_PROMPT = 2_048
"""Bytes of a body from which the time to the first content says something about reading it."""
SAMPLES = 128
"""Answers that a percentile is taken of."""
LEAST_SAMPLES = 20
"""Answers below which no percentile is told."""

_NEW = 0.2
"""Share of a new observation in a moving mean."""
_FASTER = 0.05
"""The same, of a prompt that was read faster than usual: much of it may have been kept from the one before."""


class Pace:
    """Means of the answers of one endpoint."""

    __slots__ = ("_recent", "prompt_rate", "service_s")

    def __init__(self) -> None:
        self.service_s: float | None = None
        """Seconds that an answer takes from its request to its last byte; None before the first one."""
        self.prompt_rate: float | None = None
        """Bytes of request body read a second; None before a prompt that says anything about it."""
        self._recent: deque[float] = deque(maxlen=SAMPLES)

    def answered(self, seconds: float) -> None:
        """Take note of a good answer that took so long as a whole."""
        self._recent.append(seconds)
        known = self.service_s
        self.service_s = seconds if known is None else known + _NEW * (seconds - known)

    def began(self, size: int, seconds: float) -> None:
        """Take note of the first content of an answer to a body of `size` bytes, so many seconds after it was sent."""
        if size < LEAST_PROMPT:
            return
        rate, known = size / max(seconds, 0.001), self.prompt_rate
        if known is None:
            self.prompt_rate = rate
        else:
            self.prompt_rate = known + (_FASTER if rate > known else _NEW) * (rate - known)

    def first_limit_s(self, size: int) -> float:
        """Return how long the first content of an answer to a body of `size` bytes may take."""
        needed_s = BASE_FIRST_S + size / (self.prompt_rate or UNKNOWN_RATE)
        return min(max(LEAST_FIRST_S, needed_s), MOST_FIRST_S)

    def percentile_s(self, share: float) -> float | None:
        """Return the seconds within which such a share of the last answers came; None where there were too few."""
        if len(self._recent) < LEAST_SAMPLES:
            return None
        return sorted(self._recent)[min(len(self._recent) - 1, int(share * len(self._recent)))]
