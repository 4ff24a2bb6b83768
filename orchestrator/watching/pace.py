"""Pure: when a watcher looks at its stack, and when it acts on what it sees. The clock is passed in.

Every look is at everything: an event that was missed costs time and nothing else. Events only say when to look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOOK_S = 15.0
"""Between two looks while not all is well, or after something was changed: a node that returns is seen within this."""
QUIET_LOOK_S = 45.0
"""The same while all is well: what no event tells, such as a worker that hangs, is seen within this."""
SETTLE_S = 0.3
"""A look waits until so long nothing has changed: an editor or `git pull` writes several files."""
PATIENCE_S = 2.0
"""But no longer than this after the first change."""
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A plan that could not be carried out, and is not tried again at once."""

    fingerprint: str
    times: int
    retry_at: float


@dataclass(frozen=True, slots=True)
class Pace:
    """When to look next. Times are seconds of a clock that is never set back."""

    look_at: float
    """When to look though nothing was heard."""
    changed_first: float | None = None
    """The first change since the last look began; None where there was none."""
    changed_last: float | None = None
    failed: Failed | None = None

    @property
    def next_look(self) -> float:
        """Return when to look."""
        if self.changed_first is None or self.changed_last is None:
            return self.look_at
        settled = min(self.changed_last + SETTLE_S, self.changed_first + PATIENCE_S)
        return min(self.look_at, settled)

    def changed(self, now: float) -> Pace:
        """Note that something has changed."""
        return replace(
            self, changed_first=self.changed_first if self.changed_first is not None else now, changed_last=now
        )

    def begun(self) -> Pace:
        """Note that a look begins: a change from now on needs another one."""
        return replace(self, changed_first=None, changed_last=None)

    def looked(self, now: float, within_s: float | None = None, *, is_quiet: bool = False) -> Pace:
        """Note that a look is over.

        `within_s` is when the plan has to be made again, such as after a backoff; `is_quiet`: it found all well.
        """
        period_s = QUIET_LOOK_S if is_quiet else LOOK_S
        return replace(self, look_at=now + (period_s if within_s is None else min(period_s, max(within_s, SETTLE_S))))

    def may_act(self, fingerprint: str, now: float) -> bool:
        """Tell whether a plan may be carried out now: one that failed waits longer each time, any other does not."""
        failed = self.failed
        return failed is None or failed.fingerprint != fingerprint or now >= failed.retry_at

    def acted(self, now: float, fingerprint: str, *, is_complete: bool) -> Pace:
        """Note how carrying out a plan has ended."""
        if is_complete:
            return replace(self, failed=None)
        again = self.failed is not None and self.failed.fingerprint == fingerprint
        times = self.failed.times + 1 if again and self.failed is not None else 1
        delay = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(times - 1, 10))
        return replace(self, failed=Failed(fingerprint, times, now + delay))
