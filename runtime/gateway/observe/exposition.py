"""Pure: the gateway's numbers as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from runtime.gateway.observe.metrics import Family, HistogramFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Scraped:
    """What prometheus_client asks for the families of one scrape."""

    def __init__(self, families: Iterable[Family | HistogramFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._families)


def text_of(families: Iterable[Family | HistogramFamily]) -> bytes:
    """Return families in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Scraped(families))
    return generate_latest(registry)


def _metric(family: Family | HistogramFamily) -> Metric:
    if isinstance(family, HistogramFamily):
        observed = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for values, histogram in family.samples.items():
            observed.add_metric(values, histogram.cumulative(), histogram.total_s)
        return observed
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for values, number in family.samples.items():
        metric.add_metric(values, number)
    return metric
