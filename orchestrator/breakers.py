"""Pure: the endpoints of a gateway and their circuit breakers, as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.columns import columns
from orchestrator.status import duration
from schemas.admin import BreakerReport, EndpointStatistics, Spread

_HEADS = ("ENDPOINT", "AT", "HEALTH", "BREAKER", "IN FLIGHT", "P50/P95", "TOKENS/S", "LAST ANSWER", "LAST ERROR")


def endpoint_lines(endpoints: Sequence[EndpointStatistics]) -> Iterator[str]:
    """Yield a table, one line for each endpoint."""
    yield from columns([_HEADS, *(_row(endpoint) for endpoint in endpoints)])


def history_lines(endpoint: EndpointStatistics) -> Iterator[str]:
    """Yield what the breaker of an endpoint did lately, oldest first."""
    for change in endpoint.breaker.history:
        yield f"  {duration(change.age_s)} ago: {change.state} ({change.cause})"


def changed_line(endpoint: EndpointStatistics) -> str:
    """Return what an endpoint is now, after somebody did something to it."""
    return f"{_name(endpoint)} at {endpoint.instance}: {_breaker(endpoint)}, {endpoint.health}"


def probed_line(endpoint: EndpointStatistics) -> str:
    """Return what came of a probe."""
    outcome = endpoint.probe.outcome if endpoint.probe is not None else "it was not asked"
    answer = "it answered" if outcome == "ok" else f"no answer: {outcome}"
    return f"{_name(endpoint)} at {endpoint.instance}: {answer}; {_breaker(endpoint)}, {endpoint.health}"


def has_answered(endpoint: EndpointStatistics) -> bool:
    """Tell whether the last probe of an endpoint got what its model is for."""
    return endpoint.probe is not None and endpoint.probe.outcome == "ok"


def breaker_words(breaker: BreakerReport) -> str:
    """Return a breaker's state, and how long it lasts."""
    if breaker.retry_s == 0:
        return f"{breaker.state}, trial due"
    if breaker.state == "half-open":
        return "half-open, a trial is on its way"
    if breaker.retry_s is not None:
        return f"{breaker.state}, next trial in {duration(breaker.retry_s)}"
    if breaker.state == "closed" and breaker.failures:
        return f"closed, {breaker.failures} failure{'s' if breaker.failures != 1 else ''} in a row"
    return breaker.state


def _row(endpoint: EndpointStatistics) -> tuple[str, ...]:
    error = ""
    if endpoint.last_error is not None and endpoint.last_error_age_s is not None:
        error = f"{endpoint.last_error}, {duration(endpoint.last_error_age_s)} ago"
    answered_s = endpoint.last_success_age_s
    return (
        ", ".join(endpoint.roles) or endpoint.endpoint,
        endpoint.instance,
        endpoint.health,
        _breaker(endpoint),
        str(endpoint.in_flight),
        _spread(endpoint.latency_s),
        "-" if endpoint.tokens_per_s is None else f"{endpoint.tokens_per_s:.1f}",
        "never" if answered_s is None else f"{duration(answered_s)} ago",
        error,
    )


def _breaker(endpoint: EndpointStatistics) -> str:
    words, failed = breaker_words(endpoint.breaker), endpoint.failed_checks
    return f"{words}, unready: {failed} check{'s' if failed != 1 else ''} failed" if failed else words


def _name(endpoint: EndpointStatistics) -> str:
    return endpoint.roles[0] if endpoint.roles else endpoint.endpoint


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50:.2f}/{spread.p95:.2f} s"
