"""Pure: how failures and delays are treated. The content of `conf/policies/*.yaml`, and parts of roles."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.base import HOT, Frozen

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Breaker(Frozen):
    """When an endpoint is left alone after failures, and for how long. Defaults: gateway specification."""

    failure_threshold: Annotated[int, Field(ge=1, le=1000), HOT] = 3
    """Consecutive failures that open it."""
    reset_timeout_s: Annotated[Seconds, HOT] = 60.0
    """Seconds it stays open the first time; doubles with every failed trial."""
    max_reset_timeout_s: Annotated[Seconds, HOT] = 300.0
    """The longest it stays open, in seconds."""


class HealthCheck(Frozen):
    """How often an idle endpoint is asked for one real token. Without it only those that failed are asked."""

    interval_s: Annotated[Seconds, HOT] = 30.0
    """Seconds between checks, jittered."""


class Timeouts(Frozen):
    """How long each step of a request may take."""

    connect_s: Annotated[Seconds, HOT] = 2.0
    """Opening a connection to an endpoint."""
    first_token_s: Annotated[Seconds, HOT] = 60.0
    """From sending a request to the first content of its answer."""
    idle_s: Annotated[Seconds, HOT] = 45.0
    """Between two pieces of an answer."""
    total_s: Annotated[Seconds, HOT] = 600.0
    """All attempts of a request up to the first content."""


class Limits(Frozen):
    """How much is let in."""

    attempts: Annotated[int, Field(ge=1, le=10), HOT] = 3
    """Endpoints tried for one request, each once."""
    max_in_flight: Annotated[int | None, Field(ge=1), HOT] = None
    """Requests at once to one endpoint."""
    queue: Annotated[int | None, Field(ge=0), HOT] = None
    """Requests that wait for a place, per role."""


class Policy(Frozen):
    """A named set of settings that roles refer to."""

    breaker: Annotated[Breaker, HOT] = Breaker()
    health_check: Annotated[HealthCheck | None, HOT] = None
    timeouts: Annotated[Timeouts, HOT] = Timeouts()
    limits: Annotated[Limits, HOT] = Limits()
