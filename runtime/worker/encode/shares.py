"""I/O: work of numpy's that the cores of this machine share.

numpy lets go of Python's lock while it computes. Its BLAS is told to use one thread (see `runtime.worker.__main__`):
threads of BLAS wait for each other at every product, and all stand still whenever one of them has no core.
"""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

Work = Callable[[int, int], None]
"""Takes where its share begins and ends."""


@functools.cache
def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(work: Work, count: int, least: int, threads: int | None = None) -> None:
    """Do work on `count` things, on several threads where each gets at least `least` of them; raises what it raises.

    `threads` are at most so many, one for each core where nothing is said.
    """
    parts = max(1, min(threads or cores(), count // least))
    ends = [count * part // parts for part in range(parts + 1)]
    together([functools.partial(work, begin, end) for begin, end in itertools.pairwise(ends)])


def share_jobs(jobs: Sequence[Callable[[], None]], threads: int) -> None:
    """Do jobs that differ in size, each of the threads every so-manieth of them; raises what they raise."""
    parts = max(1, min(threads, len(jobs)))
    together([functools.partial(_all, jobs[part::parts]) for part in range(parts)])


def _all(jobs: Sequence[Callable[[], None]]) -> None:
    for job in jobs:
        job()


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Make calls at once, the first of them on this thread; raises what they raise, when all are over.

    No call may share work in its turn: the threads are the same.
    """
    others = [_threads().submit(call) for call in calls[1:]]
    try:
        calls[0]()
    finally:
        # What they write into must not be let go before they are done.
        failures = [other.exception() for other in others]
    for failure in failures:
        if failure is not None:
            raise failure


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads beside the caller's, for good."""
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="encode")
