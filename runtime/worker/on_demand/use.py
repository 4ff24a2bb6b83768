"""Pure: when a loaded model was last used, and for how long it may stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

FRESH_S = 30.0
"""A model that was loaded and not used yet is not dropped for another one for so long: its client comes back for it.
Without that two models that are asked for in turn, with room for one, would push each other out for ever."""


@dataclass(slots=True)
class Use:
    """The last time that a request began or ended; a load counts as one."""

    last: float | None = None
    """On the monotonic clock; none before the first load."""
    at: float = 0.0
    """The same in seconds since the epoch, for the neighbours."""
    is_fresh: bool = False
    """Loaded, and not used since."""

    def note(self, now: float, at: float, *, is_fresh: bool = False) -> None:
        """Note a use, or with `is_fresh` the end of a load."""
        self.last, self.at, self.is_fresh = now, at, is_fresh

    def is_stale(self, now: float) -> bool:
        """Tell whether a fresh model has waited for its client for long enough."""
        return self.last is not None and now >= self.last + FRESH_S

    def is_over(self, now: float, idle_stop_s: float | None) -> bool:
        """Tell whether the model was idle for as long as it may be."""
        return self.last is not None and idle_stop_s is not None and now >= self.last + idle_stop_s

    def next_look(self, idle_stop_s: float | None) -> float | None:
        """Return when one of these may have changed; None for never."""
        if self.last is None:
            return None
        stop = math.inf if idle_stop_s is None else idle_stop_s
        due = self.last + min(stop, FRESH_S if self.is_fresh else math.inf)
        return None if due == math.inf else due
