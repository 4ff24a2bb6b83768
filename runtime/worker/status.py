"""I/O: count what the worker does, and report it with the process's memory."""

import platform
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from runtime.worker.settings import Settings
from runtime.worker.steps import Gauges
from schemas.messages import (
    WorkerMemory,
    WorkerPromptCache,
    WorkerRequests,
    WorkerSpeculation,
    WorkerTokens,
    WorkerVersions,
)

RATE_WINDOW_S = 10.0
"""Span over which tokens a second are taken."""
RECENT_REQUESTS = 32
"""Requests over which the mean duration is taken."""
_PAGE_BYTES = resource.getpagesize()


@dataclass(slots=True)
class Meter:
    """Counts requests and tokens; owned by the event loop."""

    clock: Callable[[], float] = time.monotonic
    """Seconds from any moment on."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    last_token: float | None = None
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _is_fresh: bool = True
    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_REQUESTS))

    def add_end(self, duration_s: float) -> None:
        """Count the end of a request that was in the worker for `duration_s`, waiting included."""
        self._durations.append(duration_s)

    def wait_s(self, places: int) -> float:
        """Estimate when one of `places`, all of them taken, is free; 0 while nobody knows.

        Little's law: as many requests end a second as are there, over the time that each of them stays. The time that
        the worker was idle does not count.
        """
        return sum(self._durations) / max(len(self._durations), 1) / places

    def add_round(self, tokens: int, *, is_idle: bool) -> None:
        """Count the tokens of one round; `is_idle` says that no work is left after it."""
        now = self.clock()
        if tokens:
            if self._is_fresh:
                self._recent.clear()
            self._is_fresh = False
            self.generated_tokens += tokens
            self.last_token = now
            self._recent.append((now, tokens))
            self._forget(now)
        self._is_fresh = self._is_fresh or is_idle

    def requests(self) -> WorkerRequests:
        """Report how requests ended."""
        return WorkerRequests(
            completed=self.completed, failed=self.failed, cancelled=self.cancelled, refused=self.refused
        )

    def tokens(self) -> WorkerTokens:
        """Report tokens; the rate counts from the first round of the window, whose own duration is unknown."""
        now = self.clock()
        self._forget(now)
        rate = 0.0
        if len(self._recent) > 1:
            span = self._recent[-1][0] - self._recent[0][0]
            rate = (sum(count for _, count in self._recent) - self._recent[0][1]) / max(span, 1e-3)
        return WorkerTokens(
            prompt=self.prompt_tokens,
            generated=self.generated_tokens,
            per_s=round(rate, 2),
            last_age_s=None if self.last_token is None else round(now - self.last_token, 3),
        )

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()


def memory(model_bytes: int, kv_bytes: int, prompt_cache_bytes: int = 0) -> WorkerMemory:
    """Measure this process's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return WorkerMemory(
        active_bytes=mx.get_active_memory(),
        peak_bytes=mx.get_peak_memory(),
        cache_bytes=mx.get_cache_memory(),
        model_bytes=model_bytes,
        kv_bytes=kv_bytes,
        prompt_cache_bytes=prompt_cache_bytes,
        rss_bytes=_resident_bytes(),
        rss_peak_bytes=peak if sys.platform == "darwin" else peak * 1024,  # getrusage(2): bytes there, KiB elsewhere
    )


def prompt_cache(gauges: Gauges) -> WorkerPromptCache | None:
    """Report what is kept for prompts to come; none where nothing is, and before the model is loaded."""
    if not gauges.kept_limit:
        return None
    return WorkerPromptCache(
        limit_bytes=gauges.kept_limit,
        bytes=gauges.kept_bytes,
        entries=gauges.kept,
        lookups=gauges.lookups,
        hits=gauges.hits,
        cached_tokens=gauges.cached_tokens,
    )


def speculation(settings: Settings, gauges: Gauges) -> WorkerSpeculation | None:
    """Report how good the draft model's guesses are; none without one."""
    if settings.draft_dir is None:
        return None
    return WorkerSpeculation(
        draft=settings.draft_name or Path(settings.draft_dir).name,
        draft_tokens=settings.draft_tokens,
        proposed=gauges.drafted,
        accepted=gauges.accepted,
        failure=gauges.draft_failure,
    )


def versions() -> WorkerVersions:
    """Report the versions in use."""
    return WorkerVersions(
        orchestrate=_version("orchestrate"),
        python=platform.python_version(),
        mlx=_version("mlx"),
        mlx_lm=_version("mlx-lm"),
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        return None
