"""Pure: what came of the loads of a model so far, and when the next one may be tried."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
"""After a load that failed; doubled each time."""
ROOM_POLL_S = 1.0
"""Between two tries to make room, however many clients wait: each takes the node's lock."""


@dataclass(slots=True)
class Attempts:
    """The loads of one worker."""

    loads: int = 0
    """How many brought the model into memory."""
    load_s: float | None = None
    """How long the last of them took."""
    failure: str | None = None
    """Why the last one failed; none after one that did not."""
    shortage: str | None = None
    """Why there was no room for the last one."""
    _failures: int = 0
    _retry_at: float = 0.0
    """On the monotonic clock, like `_room_at`."""
    _room_at: float = 0.0

    @property
    def backoff_s(self) -> float:
        """Return how long nothing is tried after the failure that comes next."""
        return min(FIRST_BACKOFF_S * 2.0 ** min(self._failures, 10), LONGEST_BACKOFF_S)

    def may_begin(self, now: float) -> bool:
        """Tell whether a load may be tried."""
        return now >= max(self._retry_at, self._room_at)

    def backoff_left_s(self, now: float) -> float | None:
        """Return for how long nothing is tried after a failure; none where nothing stands in the way."""
        return self._retry_at - now if self.failure is not None and now < self._retry_at else None

    def note_load(self, load_s: float) -> None:
        """Note that the model is in memory."""
        self.loads += 1
        self.load_s = load_s
        self.failure = self.shortage = None
        self._failures = 0

    def note_failure(self, reason: str, now: float) -> None:
        """Note a load that failed; its backoff begins."""
        self.failure, self._retry_at = reason, now + self.backoff_s
        self._failures += 1

    def note_shortage(self, words: str, now: float) -> None:
        """Note that others hold the memory."""
        self.shortage, self._room_at = words, now + ROOM_POLL_S
