"""I/O: Prometheus metrics of the gateway. Every label value comes from the configuration or from a fixed set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class EndpointGauge:
    """One endpoint at the time of a scrape."""

    role: str
    endpoint: str
    url: str
    in_flight: int
    breaker: int
    """0 closed, 1 half-open, 2 open."""
    is_available: bool


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read at the time of a scrape and never counted."""

    is_current: bool
    problems: int
    generation: int
    endpoints: tuple[EndpointGauge, ...]


class Metrics:
    """Counters of one gateway process, in a registry of its own."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        """`gauges` is asked at every scrape."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_Scrape(gauges))
        self._requests = self._counter("orchestrate_requests", "Requests that ended.", "role", "endpoint", "outcome")
        self._attempts = self._counter("orchestrate_attempts", "Attempts that ended.", "endpoint", "outcome")
        self._reloads = self._counter("orchestrate_config_reloads", "Times that the files were read.", "result")
        self._all = self._counter("mlx_cluster_requests", "Requests that ended, of every kind.")
        self._tokens = self._counter("mlx_cluster_tokens_generated", "Tokens that endpoints say they generated.")
        self._malformed = self._counter("orchestrate_malformed_events", "Events of streams that were no JSON.")
        self._watch_restarts = self._counter("orchestrate_watch_restarts", "Times that watching files began anew.")
        self._seconds = self._histogram("orchestrate_request_seconds", "Whole requests.")
        self._first_content = self._histogram("orchestrate_first_content_seconds", "Streams up to their first content.")
        self._children: dict[tuple[str, ...], Any] = {}

    def request(self, role: str, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request that ended; `outcome` is one of a fixed set."""
        self._child(self._requests, "request", role, endpoint, outcome).inc()
        self._child(self._seconds, "seconds", role).observe(seconds)
        self._all.inc()

    def attempt(self, endpoint: str, outcome: str) -> None:
        """Count an attempt that ended."""
        self._child(self._attempts, "attempt", endpoint, outcome).inc()

    def first_content(self, role: str, seconds: float) -> None:
        """Observe how long a stream's first content took."""
        self._child(self._first_content, "first", role).observe(seconds)

    def tokens(self, count: int) -> None:
        """Add tokens that an endpoint reported."""
        self._tokens.inc(count)

    def malformed(self, count: int) -> None:
        """Add events that were passed on although they were no JSON."""
        self._malformed.inc(count)

    def reload(self, *, is_good: bool) -> None:
        """Count a reading of the files."""
        self._child(self._reloads, "reload", "good" if is_good else "bad").inc()

    def watch_restart(self) -> None:
        """Count that watching files failed and began anew."""
        self._watch_restarts.inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("role",), buckets=_SECONDS, registry=self._registry)

    def _child(self, metric: Any, *key: str) -> Any:
        # prometheus_client looks labels up under a lock; this dictionary spares it on the path of every request.
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*key[1:])
        return child


class _Scrape:
    """Turns gauges into metric families when Prometheus asks."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families, as prometheus_client asks of a collector."""
        now = self._gauges()
        yield _gauge("orchestrate_config_current", "1 while the newest files are served, else 0.", now.is_current)
        yield _gauge("orchestrate_config_problems", "Problems in newer files that are not served.", now.problems)
        yield _gauge("orchestrate_generation", "The generation of the routes in use.", now.generation)
        labels = ("role", "endpoint", "url")
        in_flight = GaugeMetricFamily("orchestrate_in_flight", "Requests at an endpoint.", labels=labels)
        breaker = GaugeMetricFamily(
            "orchestrate_breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.", labels=labels
        )
        available = GaugeMetricFamily("orchestrate_endpoint_available", "1 while it may be called.", labels=labels)
        for endpoint in now.endpoints:
            names = (endpoint.role, endpoint.endpoint, endpoint.url)
            in_flight.add_metric(names, endpoint.in_flight)
            breaker.add_metric(names, endpoint.breaker)
            available.add_metric(names, endpoint.is_available)
        yield from (in_flight, breaker, available)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
