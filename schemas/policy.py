"""Pure: how failures and delays are treated. The content of `conf/policies/*.yaml`, and parts of roles."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import HOT, Frozen

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Breaker(Frozen):
    """When an endpoint is left alone after failures, and for how long. Defaults: gateway specification."""

    failure_threshold: Annotated[int, Field(ge=1, le=1000), HOT] = 3
    """Consecutive failures that open it."""
    failure_rate: Annotated[float, Field(gt=0, le=1), HOT] = 0.5
    """Share of the calls within the window whose failure opens it."""
    slow_rate: Annotated[float, Field(gt=0, le=1), HOT] = 0.8
    """Share of the calls within the window that opens it when they are slow."""
    slow_call_s: Annotated[Seconds | None, HOT] = None
    """Seconds to the first content (all vectors, all scores) from which a call is slow; absent: 80 % of its limit."""
    minimum_calls: Annotated[int, Field(ge=1, le=1000), HOT] = 5
    """Calls that the window must hold before a share of them counts; never fewer than `failure_threshold`."""
    window_s: Annotated[float, Field(ge=1, le=600), HOT] = 30.0
    """Seconds over which calls are counted."""
    reset_timeout_s: Annotated[Seconds, HOT] = 60.0
    """Seconds it stays open the first time; doubles with every failed trial."""
    max_reset_timeout_s: Annotated[Seconds, HOT] = 300.0
    """The longest it stays open, in seconds."""
    slow_start_s: Annotated[float, Field(ge=0, le=3600), HOT] = 30.0
    """Seconds over which an endpoint that has come back gets ever more requests at once, while others can answer."""
    panic: Annotated[Literal["fail", "try"], HOT] = "fail"
    """When every endpoint's breaker is open and there is no fallback: `fail` at once, or `try` one all the same."""


class HealthCheck(Frozen):
    """How often an idle endpoint is asked for one real token. Without it only those that failed are asked."""

    interval_s: Annotated[Seconds, HOT] = 30.0
    """Seconds between checks, jittered."""


class Timeouts(Frozen):
    """How long each step of a request may take."""

    connect_s: Annotated[Seconds, HOT] = 2.0
    """Opening a connection to an endpoint."""
    first_token_s: Annotated[Seconds | None, HOT] = None
    """From sending a request to the first content of its answer. Where nothing is said: 10 s and what the endpoint
    needs to read the prompt at the pace that it has shown, at least 30 s and at most 600 s."""
    idle_s: Annotated[Seconds, HOT] = 45.0
    """Between two pieces of an answer."""
    queue_s: Annotated[Seconds, HOT] = 30.0
    """How long a request may wait in the queue of its role."""
    total_s: Annotated[Seconds, HOT] = 600.0
    """All attempts of a request up to the first content."""


class Limits(Frozen):
    """How much is let in."""

    attempts: Annotated[int, Field(ge=1, le=10), HOT] = 3
    """Endpoints tried for one request, each once."""
    max_in_flight: Annotated[int | None, Field(ge=1), HOT] = None
    """Requests at once to one endpoint; any number where nothing is said."""
    rpm: Annotated[int | None, Field(ge=1, le=60_000), HOT] = None
    """Requests that one endpoint gets in any 60 seconds; any number where nothing is said."""
    queue: Annotated[int, Field(ge=0, le=10_000), HOT] = 64
    """Requests of a role that wait until an endpoint has a place for them; more are refused at once."""
    hedge_s: Annotated[Seconds | Literal["p95"] | None, HOT] = None
    """Embedding and reranking: when a second endpoint is asked too, and the first good answer is taken: after so many
    seconds, or with `p95` once 95 % of the endpoint's last answers were there. Where nothing is said, never."""


class Policy(Frozen):
    """A named set of settings that roles refer to."""

    breaker: Annotated[Breaker, HOT] = Breaker()
    health_check: Annotated[HealthCheck | None, HOT] = None
    timeouts: Annotated[Timeouts, HOT] = Timeouts()
    limits: Annotated[Limits, HOT] = Limits()
