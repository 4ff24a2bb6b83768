"""What Prometheus reads, checked with Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from runtime.gateway.observe.exposition import text_of
from runtime.gateway.observe.metrics import EndpointGauge, Gauges, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text_of(metrics.families()).decode())
        for sample in family.samples
    }


def metrics() -> Metrics:
    endpoint = EndpointGauge("chat", "a", "http://h:1", in_flight=3, breaker=2, is_available=False)
    return Metrics(lambda: Gauges(is_current=False, problems=4, generation=9, endpoints=(endpoint,)))


def test_a_fresh_gateway_shows_its_gauges_and_zeros() -> None:
    found = samples(metrics())
    labels = (("endpoint", "a"), ("role", "chat"), ("url", "http://h:1"))
    assert found["orchestrate_config_current", ()] == 0
    assert found["orchestrate_config_problems", ()] == 4
    assert found["orchestrate_generation", ()] == 9
    assert found["orchestrate_in_flight", labels] == 3
    assert found["orchestrate_breaker_state", labels] == 2
    assert found["orchestrate_endpoint_available", labels] == 0
    assert found["mlx_cluster_requests_total", ()] == 0
    assert found["orchestrate_watch_restarts_total", ()] == 0


def test_counts_add_up() -> None:
    counted = metrics()
    for outcome in ("ok", "ok", "unavailable"):
        counted.request("chat", "a", outcome, 0.1)
    counted.request("code", "b", "ok", 0.1)
    counted.attempt("a", "refused")
    counted.tokens(7)
    counted.tokens(5)
    counted.malformed(2)
    counted.watch_restart()
    counted.reload(is_good=True)
    counted.reload(is_good=False)
    found = samples(counted)
    by_outcome = (("endpoint", "a"), ("outcome", "ok"), ("role", "chat"))
    assert found["orchestrate_requests_total", by_outcome] == 2
    assert found["orchestrate_attempts_total", (("endpoint", "a"), ("outcome", "refused"))] == 1
    assert found["mlx_cluster_requests_total", ()] == 4
    assert found["mlx_cluster_tokens_generated_total", ()] == 12
    assert found["orchestrate_malformed_events_total", ()] == 2
    assert found["orchestrate_watch_restarts_total", ()] == 1
    assert found["orchestrate_config_reloads_total", (("result", "bad"),)] == 1


def test_histograms_are_cumulative_and_bounds_are_included() -> None:
    counted = metrics()
    for seconds in (0.005, 0.006, 0.3, 1000.0):
        counted.request("chat", "a", "ok", seconds)
    counted.first_content("chat", 0.02)
    found = samples(counted)

    def bucket(bound: str) -> float:
        return found["orchestrate_request_seconds_bucket", (("le", bound), ("role", "chat"))]

    assert [bucket("0.005"), bucket("0.01"), bucket("0.25"), bucket("0.5"), bucket("300.0")] == [1, 2, 2, 3, 3]
    assert bucket("+Inf") == found["orchestrate_request_seconds_count", (("role", "chat"),)] == 4
    assert found["orchestrate_request_seconds_sum", (("role", "chat"),)] == 1000.311
    assert found["orchestrate_first_content_seconds_count", (("role", "chat"),)] == 1
