"""Pure: what the gateway counts. Every label value comes from the configuration or from a fixed set."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

Labels = tuple[str, ...]
"""The values of a sample's labels."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class EndpointGauge:
    """One endpoint at the time of a scrape."""

    role: str
    endpoint: str
    url: str
    in_flight: int
    breaker: int
    """0 closed, 1 half-open, 2 open, 3 isolated by hand."""
    is_available: bool
    is_serving: bool = False
    """Whether it is on the rung that answers now."""
    changed: Mapping[str, int] = field(default_factory=dict)
    """How often its breaker became what."""


@dataclass(frozen=True, slots=True)
class PrefixGauge:
    """What is known of the caches of endpoints at the time of a scrape."""

    blocks: int
    drawn: int
    found: int
    gone: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read at the time of a scrape and never counted."""

    is_current: bool
    problems: int
    generation: int
    endpoints: tuple[EndpointGauge, ...]
    held: Mapping[str, int] = field(default_factory=dict)
    """Requests that wait for a successor, by the name that they ask for."""
    queued: Mapping[str, int] = field(default_factory=dict)
    """Requests that wait for a place, by the name that they ask for."""
    prefixes: PrefixGauge | None = None


class Histogram:
    """Observations of one label value."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus wants them: upper bound and how many are at most that."""
        bounds = [*(str(bound) for bound in _SECONDS), "+Inf"]
        return list(zip(bounds, (float(count) for count in accumulate(self.counts)), strict=True))


class Family(NamedTuple):
    """One metric at the time of a scrape."""

    kind: Literal["counter", "gauge"]
    name: str
    text: str
    labels: tuple[str, ...]
    samples: Mapping[Labels, float]
    """Numbers by the values of the labels."""


class HistogramFamily(NamedTuple):
    """The same of one that is observed."""

    name: str
    text: str
    labels: tuple[str, ...]
    samples: Mapping[Labels, Histogram]


class Metrics:
    """Counters of one gateway process.

    They are plain numbers of the event loop, turned into Prometheus' families at a scrape: its own counters take a lock
    and a dictionary look-up each, which showed in the profile of a request.
    """

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        """`gauges` is asked at every scrape."""
        self._gauges = gauges
        self._requests: Counter[Labels] = Counter()
        self._attempts: Counter[Labels] = Counter()
        self._reloads: Counter[Labels] = Counter()
        self._probes: Counter[Labels] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._first_content: dict[str, Histogram] = {}
        self._hedges: Counter[Labels] = Counter()
        self._refused: Counter[Labels] = Counter()
        self._restarts: Counter[Labels] = Counter()
        self._continued: Counter[Labels] = Counter()
        self._tokens = 0
        self._malformed = 0
        self._watch_restarts = 0
        self._probe_restarts = 0

    def request(self, role: str, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request that ended; `outcome` is one of a fixed set."""
        self._requests[role, endpoint, outcome] += 1
        _observe(self._seconds, role, seconds)

    def attempt(self, endpoint: str, outcome: str) -> None:
        """Count an attempt that ended."""
        self._attempts[endpoint, outcome] += 1

    def probe(self, endpoint: str, outcome: str) -> None:
        """Count a request of the gateway's own for one token."""
        self._probes[endpoint, outcome] += 1

    def hedge(self, role: str, outcome: str) -> None:
        """Count a request that a second endpoint was asked too: that one `won`, `lost`, or both `failed`."""
        self._hedges[role, outcome] += 1

    def restart(self, endpoint: str) -> None:
        """Count a stream that an endpoint gave anew, because another one had broken off."""
        self._restarts[endpoint,] += 1

    def continued(self, endpoint: str) -> None:
        """Count a stream that an endpoint went on with, because another one had broken off."""
        self._continued[endpoint,] += 1

    def queue_refused(self, role: str) -> None:
        """Count a request that found no place in line."""
        self._refused[role,] += 1

    def first_content(self, role: str, seconds: float) -> None:
        """Observe how long a stream's first content took."""
        _observe(self._first_content, role, seconds)

    def tokens(self, count: int) -> None:
        """Add tokens that an endpoint reported."""
        self._tokens += count

    def malformed(self, count: int) -> None:
        """Add events that were passed on although they were no JSON."""
        self._malformed += count

    def reload(self, *, is_good: bool) -> None:
        """Count a reading of the files."""
        self._reloads["good" if is_good else "bad",] += 1

    def watch_restart(self) -> None:
        """Count that watching files failed and began anew."""
        self._watch_restarts += 1

    def probe_restart(self) -> None:
        """Count that asking endpoints for tokens failed on our side and began anew."""
        self._probe_restarts += 1

    def families(self) -> Iterator[Family | HistogramFamily]:
        """Yield everything as it is now."""
        yield _counter("orchestrate_requests", "Requests that ended.", ("role", "endpoint", "outcome"), self._requests)
        yield _counter("orchestrate_attempts", "Attempts that ended.", ("endpoint", "outcome"), self._attempts)
        yield _counter(
            "orchestrate_probes", "Tokens asked for to see whether it answers.", ("endpoint", "outcome"), self._probes
        )
        yield _counter("orchestrate_hedges", "Second endpoints asked too.", ("role", "outcome"), self._hedges)
        yield _counter("orchestrate_restarts", "Streams given anew after a break.", ("endpoint",), self._restarts)
        yield _counter("orchestrate_continued", "Streams gone on with after a break.", ("endpoint",), self._continued)
        yield _counter("orchestrate_queue_refused", "Requests that found the queue full.", ("role",), self._refused)
        yield _counter("orchestrate_config_reloads", "Times that the files were read.", ("result",), self._reloads)
        for name, text, value in (
            ("mlx_cluster_requests", "Requests that ended, of every kind.", self._requests.total()),
            ("mlx_cluster_tokens_generated", "Tokens that endpoints say they generated.", self._tokens),
            ("orchestrate_malformed_events", "Events of streams that were no JSON.", self._malformed),
            ("orchestrate_watch_restarts", "Times that watching files began anew.", self._watch_restarts),
            ("orchestrate_probe_restarts", "Times that probing began anew.", self._probe_restarts),
        ):
            yield _counter(name, text, (), {(): value})
        yield _histogram("orchestrate_request_seconds", "Whole requests.", self._seconds)
        yield _histogram("orchestrate_first_content_seconds", "Streams up to their first content.", self._first_content)
        yield from _gauge_families(self._gauges())


def _observe(histograms: dict[str, Histogram], role: str, seconds: float) -> None:
    histogram = histograms.get(role)
    if histogram is None:
        histogram = histograms[role] = Histogram()
    histogram.observe(seconds)


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[Labels, float]) -> Family:
    return Family("counter", name, text, labels, counts)


def _histogram(name: str, text: str, histograms: Mapping[str, Histogram]) -> HistogramFamily:
    return HistogramFamily(name, text, ("role",), {(role,): each for role, each in histograms.items()})


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Family:
    return Family("gauge", name, text, labels, values)


def _gauge_families(now: Gauges) -> Iterator[Family]:
    yield _gauge("orchestrate_config_current", "1 while the newest files are served, else 0.", (), {(): now.is_current})
    yield _gauge("orchestrate_config_problems", "Problems in newer files that are not served.", (), {(): now.problems})
    yield _gauge("orchestrate_generation", "The generation of the routes in use.", (), {(): now.generation})
    yield _gauge(
        "mlx_cluster_queue_depth", "Requests that wait for a place, of every role.", (), {(): sum(now.queued.values())}
    )
    if now.prefixes is not None:
        blocks: dict[Labels, int] = {(): now.prefixes.blocks}
        yield _gauge("orchestrate_prefix_blocks", "Blocks of prompts whose readers are known.", (), blocks)
        for name, text, value in (
            (
                "orchestrate_prefix_drawn",
                "Requests sent to an endpoint that had read their beginning.",
                now.prefixes.drawn,
            ),
            ("orchestrate_prefix_found", "Such requests whose beginning it still had.", now.prefixes.found),
            ("orchestrate_prefix_gone", "Such requests whose beginning it had not.", now.prefixes.gone),
        ):
            yield _counter(name, text, (), {(): value})
    yield from _endpoint_families(now.endpoints)
    held: dict[Labels, int] = {(name,): count for name, count in now.held.items()}
    yield _gauge("orchestrate_held_requests", "Requests that wait for a successor.", ("role",), held)
    queued: dict[Labels, int] = {(name,): count for name, count in now.queued.items()}
    yield _gauge("orchestrate_queue_depth", "Requests that wait for a place.", ("role",), queued)


def _endpoint_families(endpoints: Sequence[EndpointGauge]) -> Iterator[Family]:
    labels = ("role", "endpoint", "url")
    named: list[tuple[Labels, EndpointGauge]] = [((each.role, each.endpoint, each.url), each) for each in endpoints]
    in_flight = {names: each.in_flight for names, each in named}
    yield _gauge("orchestrate_in_flight", "Requests at an endpoint.", labels, in_flight)
    breaker = {names: each.breaker for names, each in named}
    text = "Circuit breaker: 0 closed, 1 half-open, 2 open, 3 isolated."
    yield _gauge("orchestrate_breaker_state", text, labels, breaker)
    changed: dict[Labels, int] = {
        (*names, state): count for names, each in named for state, count in each.changed.items()
    }
    text = "Times that a circuit breaker changed."
    yield _counter("orchestrate_breaker_changes", text, (*labels, "state"), changed)
    available = {names: each.is_available for names, each in named}
    yield _gauge("orchestrate_endpoint_available", "1 while it may be called.", labels, available)
    serving = {names: each.is_serving for names, each in named}
    yield _gauge("orchestrate_endpoint_serving", "1 while it is on the rung in use.", labels, serving)
