"""Pure: rows that wait to be computed, and which of them go together.

Rows of nearly the same length share a batch, whoever asked for them: padding costs as much as text. Requests take
turns, so that one text does not wait behind the two thousand of somebody else.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_BUCKET = 16


@dataclass(frozen=True, slots=True)
class Pick:
    """One row of one job."""

    job_id: int
    index: int


@dataclass(slots=True)
class RowQueue:
    """The rows of all jobs, by length."""

    max_rows: int
    max_tokens: int
    """Of one batch, padding included; a row that is longer goes alone."""
    _jobs: dict[int, dict[int, deque[int]]] = field(default_factory=dict)
    """For each job in the order of turns, the indexes of its rows by the bucket of their length."""

    def __bool__(self) -> bool:
        """Tell whether any row waits."""
        return bool(self._jobs)

    def add(self, job_id: int, lengths: Sequence[int]) -> None:
        """Let a job's rows wait."""
        buckets: dict[int, deque[int]] = {}
        for index, length in enumerate(lengths):
            buckets.setdefault(bucket(length), deque()).append(index)
        self._jobs[job_id] = buckets

    def remove(self, job_id: int) -> None:
        """Forget a job's rows; one that is not there is no mistake."""
        self._jobs.pop(job_id, None)

    def pop(self) -> list[Pick]:
        """Return the next batch: the longest rows of the job whose turn it is, and others of their length."""
        leader = next(iter(self._jobs))
        size = max(self._jobs[leader])
        room = max(1, min(self.max_rows, self.max_tokens // size))
        picks: list[Pick] = []
        for job_id in list(self._jobs):
            buckets = self._jobs[job_id]
            while len(picks) < room and buckets.get(size):
                picks.append(Pick(job_id, buckets[size].popleft()))
            if not buckets.get(size, True):
                del buckets[size]
            if not buckets:
                del self._jobs[job_id]
        if leader in self._jobs:
            self._jobs[leader] = self._jobs.pop(leader)
        return picks


def bucket(length: int) -> int:
    """Return the least size, of 16, 24, 32, 48, 64, 96 and so on, that a length fits into."""
    size = LEAST_BUCKET
    while length > size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
