"""Pure: how long a round of a group may take before it counts as stuck, learned from the rounds before it."""

from collections import deque
from dataclasses import dataclass, field

from runtime.worker.steps import Commands, Step

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

    _unread: dict[int, int] = field(default_factory=dict)
    """Prompt tokens to come, keyed by id."""
    _outside: dict[int, int] = field(default_factory=dict)
    """Lengths of prompts that were handed over and have not entered the batch, keyed by id."""
    _portion: int = 0
    """Tokens of each prompt in the round under way."""
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
            self._outside.pop(job_id, None)
        self._outside |= {insert.id: len(insert.tokens) for insert in commands.inserts}
        self._portion = commands.prefill_tokens
        self._work = self._read(self._unread)
        if not self._is_warm:
            return WARM_UP_S
        # How much of the new ones is known already is told only by the round: until then nothing counts as known.
        fresh = (len(insert.tokens) for insert in commands.inserts if insert.shares in (None, insert.id))
        work = self._work + sum(min(length, self._portion) for length in fresh)
        expected = max(self._steps, default=0.0) + work * self._token_s
        return min(CEILING_S, max(FLOOR_S, FACTOR * expected))

    def end(self, duration_s: float, step: Step) -> None:
        """Note how long the round took that was begun last, and what it gave."""
        fresh = {job_id: self._outside.pop(job_id, known) - known for job_id, known in step.entered.items()}
        for job_id in step.refused:
            self._outside.pop(job_id, None)
        self._work += self._read(fresh)
        self._unread |= fresh
        if not self._is_warm:
            # A round may only launch what the next one waits for: all of them together are the first token.
            self._token_s += duration_s
            if step.tokens:
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

    def _read(self, unread: dict[int, int]) -> int:
        """Take off what one round reads of prompts; return how much that is."""
        work = 0
        for job_id, left in list(unread.items()):
            reads = min(left, self._portion)
            work += reads
            unread[job_id] = left - reads
            if not unread[job_id]:
                del unread[job_id]
        return work
