"""Pure: how many requests each key has made in the last minute, the clock passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

WINDOW_S = 60.0


class Rates:
    """Requests of the last minute, by key. Exact: a key's limit holds for any minute, not only for calendar ones."""

    def __init__(self) -> None:
        self._made: dict[str, deque[float]] = {}

    def take(self, key: str, rpm: int, now: float) -> float:
        """Count a request of a key, if it may be made; return 0, or after how many seconds the next one may be."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = deque()
        while made and now - made[0] >= WINDOW_S:
            made.popleft()
        if len(made) < rpm:
            made.append(now)
            return 0.0
        # A limit that was lowered meanwhile: as many have to leave the window as are too many.
        return made[len(made) - rpm] + WINDOW_S - now

    def keep(self, keys: Collection[str]) -> None:
        """Forget all other keys."""
        for key in [key for key in self._made if key not in keys]:
            del self._made[key]
