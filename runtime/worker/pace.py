"""Pure: how long a round of a group may take before it counts as stuck, learned from the rounds before it."""

from collections import deque
from dataclasses import dataclass, field

from runtime.worker.steps import Commands

FLOOR_S = 15.0
"""No round is stuck before. A rank that was stopped or cut off has to be noticed within 20 s."""
CEILING_S = 600.0
WARM_UP_S = 180.0
"""The rounds up to the first token: pages come from the disk, a GPU compiles its kernels."""
FIRST_STEP_S = 2.0
"""The first token counts as a slow step of at most this: it promises little for the next ones."""
FACTOR = 10.0
"""How many times longer than expected a round may take: machines swap, throttle and run other programs."""
RECENT = 64


@dataclass(slots=True)
class Pace:
    """Follows which request still reads its prompt, and how long rounds take; owned by whoever begins rounds."""

    prefill_tokens: int
    """Prompt tokens of one request computed in one round."""
    _unread: dict[int, int] = field(default_factory=dict)
    """Prompt tokens to come, keyed by id."""
    _work: int = 0
    """Tokens of the round under way."""
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Seconds of recent rounds that only generated."""
    _token_s: float = 0.0
    """Seconds that one prompt token took, in the slowest of recent rounds; before one was read, a whole round."""
    _has_read: bool = False
    _is_warm: bool = False

    def begin(self, commands: Commands) -> float:
        """Note a round; return its deadline, in seconds from now."""
        for job_id in commands.removes:
            self._unread.pop(job_id, None)
        self._unread |= {insert.id: len(insert.tokens) for insert in commands.inserts}
        reads = {job_id: min(left, self.prefill_tokens) for job_id, left in self._unread.items()}
        self._unread = {job_id: left - reads[job_id] for job_id, left in self._unread.items() if left > reads[job_id]}
        self._work = sum(reads.values())
        if not self._is_warm:
            return WARM_UP_S
        expected = max(self._steps, default=0.0) + self._work * self._token_s
        return min(CEILING_S, max(FLOOR_S, FACTOR * expected))

    def end(self, duration_s: float, tokens: int) -> None:
        """Note how long the round took that was begun last, and how many tokens it gave."""
        if not self._is_warm:
            # A round may only launch what the next one waits for: all of them together are the first token.
            self._token_s += duration_s
            if tokens:
                self._is_warm = True
                self._steps.append(min(FIRST_STEP_S, self._token_s))
            return
        if not self._work:
            self._steps.append(duration_s)
            return
        token_s = duration_s / self._work
        # Falls slowly and rises at once: one long prompt on an idle machine promises nothing for a busy one.
        self._token_s = max(token_s, 0.9 * self._token_s) if self._has_read else token_s
        self._has_read = True
