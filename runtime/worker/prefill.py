"""Pure: how many tokens of the prompts one round computes, learned from the rounds before it.

A round cannot be interrupted: it must not freeze the streams of others, nor hold for long the place of a client that
has left. But each round costs something by itself, and many tokens at once cost less than one by one. So a round gets
the tokens that fit into a time, and more time while nobody streams.
"""

from dataclasses import dataclass, field

from runtime.worker.steps import Commands, Step

ALONE_S = 1.0
"""What a round may take while all requests read their prompts."""
SHARED_S = 0.25
"""What reading may add to a round that others get a token of; as long as the token itself takes it may always add."""
TAIL = 32
"""So many tokens at most, the last ones of a prompt, are one pass with the first token of the answer: the logits behind
all of them are computed, which is little against a pass of its own for the last one."""
GROWTH = 4
"""How many times larger than one that was measured a portion may be: what larger ones take is a guess."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the tokens that one round reads. Both are powers of two."""

    least: int
    """With fewer, of all prompts together, the computation is much slower a token."""
    most: int
    """Of one prompt. More is no quicker a token; on a CPU the attention's scores take memory in proportion."""


CPU = Bounds(32, 256)
"""SmolLM2-135M, 4 bits, one busy x86 core: 1, 8, 32 and 128 tokens at once take 400, 110, 36 and 25 ms each."""
GPU = Bounds(256, 2048)
"""2048 is mlx-lm's own; a large model that reads 100 tokens a second still gives up a place within 3 s."""


def portion(left: int, size: int) -> int:
    """Return how many of the `left` tokens of a prompt a round computes that reads `size` of each at most.

    All of them only where they are few: the last one comes with the first token of the answer.
    """
    return left if left <= min(size, TAIL) else min(size, left - 1)


@dataclass(slots=True)
class Portions:
    """Follows which request still reads its prompt, and how long that takes; owned by whoever begins rounds."""

    bounds: Bounds = CPU
    _unread: dict[int, int] = field(default_factory=dict)
    """Prompt tokens to come, keyed by id; where it is one, it takes what a token of the answer takes."""
    _outside: dict[int, int] = field(default_factory=dict)
    """Lengths of prompts that have not entered the batch, keyed by id."""
    _open: set[int] = field(default_factory=set)
    """Ids of all that have entered and not left."""
    _token_s: float | None = None
    """Seconds that one prompt token takes; none before any was read."""
    _step_s: float = 0.0
    """Seconds of the rounds that only generate."""
    _size: int = 0
    """Of the round under way."""
    _telling: int = 0
    """Fewer tokens in the round under way take nearly as long as so many: they tell nothing of a token."""
    _measured: int = 0
    """The most tokens, of all prompts together, that were measured in a round."""

    def begin(self, commands: Commands) -> int:
        """Note a round; return how many tokens of each prompt it computes."""
        for job_id in commands.removes:
            self._forget(job_id)
        self._outside |= {insert.id: len(insert.tokens) for insert in commands.inserts}
        is_shared = len(self._open) > len(self._unread)
        reading = len(self._unread) + sum(insert.shares in {None, insert.id} for insert in commands.inserts)
        reading = max(1, reading)
        self._size = self._fitting(max(SHARED_S, self._step_s) if is_shared else ALONE_S, reading)
        self._telling = min(self.bounds.least, self._size * reading)
        return self._size

    def end(self, duration_s: float, step: Step) -> None:
        """Note how long the round took that was begun last, and what it gave."""
        for job_id in step.refused:
            self._forget(job_id)
        for job_id, known in step.entered.items():
            self._open.add(job_id)
            left = self._outside.pop(job_id, known) - known
            if left > 1:
                self._unread[job_id] = left
        if not step.has_computed:
            return
        generates = any(token.id not in self._unread and token.id not in step.entered for token in step.tokens)
        work = self._read()
        for token in step.tokens:
            if token.finish is not None:
                self._forget(token.id)
        if not work:
            if generates:
                self._step_s = _mean(self._step_s or duration_s, duration_s)
        elif work >= self._telling:
            reading_s = duration_s - self._step_s * generates
            if reading_s <= 0:
                # Generating has become quicker than it was known to be: what reading took cannot be told.
                return
            token_s = reading_s / work
            self._token_s = token_s if self._token_s is None else _mean(self._token_s, token_s)
            self._measured = max(self._measured, work)

    def clear(self) -> None:
        """Forget all requests; how long they took is still known."""
        self._unread.clear()
        self._outside.clear()
        self._open.clear()

    def _fitting(self, seconds: float, reading: int) -> int:
        """Return the largest power of two, within the bounds, that takes `seconds` for so many prompts at once."""
        size = 1 << max(1, self.bounds.least // reading).bit_length() - 1
        if self._token_s is None:
            return size
        most = min(self.bounds.most, self._measured * GROWTH // reading)
        while 2 * size <= most and 2 * size * reading * self._token_s <= seconds:
            size *= 2
        return size

    def _read(self) -> int:
        """Take off what one round reads of prompts; return how much that is, padding included."""
        reads = {job_id: portion(left, self._size) for job_id, left in self._unread.items()}
        left_over = {job_id: left - reads[job_id] for job_id, left in self._unread.items()}
        self._unread = {job_id: left for job_id, left in left_over.items() if left > 1}
        return max(reads.values(), default=0) * len(reads)

    def _forget(self, job_id: int) -> None:
        self._outside.pop(job_id, None)
        self._unread.pop(job_id, None)
        self._open.discard(job_id)


def _mean(before: float, now: float) -> float:
    return (before + now) / 2
