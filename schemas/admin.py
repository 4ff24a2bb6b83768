"""Pure: what the gateway tells about itself at `GET /admin/config`; read by `orchestrate plan` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Frozen, Reported
from schemas.problems import Problem

Health = Literal["alive", "ready", "serving", "wedged", "cold", "saturated", "misconfigured", "unknown"]
"""How an endpoint is. `alive`: it says something, but gives no answers now, or has given none lately. `ready`: it has
answered lately. `serving`: and works at a request. `wedged`: it takes requests and gives no token. `cold`: its model
is not in memory. `saturated`: it has enough to do. `misconfigured`: it does not take our key. `unknown`: it was never
heard of, or cannot be reached."""
BreakerState = Literal["closed", "open", "half-open", "isolated"]


class ProbeReport(Reported):
    """What came of asking an endpoint for one token."""

    age_s: float
    """Seconds ago."""
    outcome: str
    """`ok`, or a few words on what went wrong."""


class EndpointReport(Reported):
    """One endpoint as the gateway sees it now."""

    name: str
    role: str
    url: str
    model: str
    state: Literal[
        "ready",
        "unready",
        "cold",
        "loading",
        "not running",
        "draining",
        "replacing",
        "misconfigured",
        "open",
        "half-open",
        "isolated",
        "wedged",
    ]
    """`unready`: its last check failed, and no answer to a client has shown otherwise since. `cold`: a request brings
    its model into memory. `open` and `half-open` are the breaker's; `wedged`: it takes requests without ever giving a
    token. `isolated`: somebody has taken it out by hand. `misconfigured`: it does not take our key, or its key cannot
    be read."""
    in_flight: int
    last_error: str | None = None
    priority: int | None = None
    """Its tier in the role, lower ones first; None for what the role falls back to."""
    is_serving: bool = False
    """Whether it is on the rung that would answer a request of this role now."""
    probe: ProbeReport | None = None
    """The last time that the gateway itself asked it for a token."""
    health: Health = "unknown"
    """How it is, from what was heard of it."""


class ConfigReport(Reported):
    """The configuration that the gateway serves, and what is wrong with newer files."""

    version: Literal[1] = 1
    stack: str
    generation: int
    """The generation of the `routes.json` in use; 0 without one."""
    revision: str | None
    """Git revision recorded in that file."""
    routing_digest: str
    """Digest of the routing fields in use, see `schemas.hashing.routing_digest`."""
    routing: Mapping[str, str]
    """The routing fields in use: dotted key -> JSON text."""
    is_current: bool
    """False while newer files are bad: the last good table is served."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the newer files."""
    loaded_at: float
    """When the table in use was built, seconds since the epoch."""
    reloads: int
    """Tables built since the start."""
    failed_reloads: int
    """Times that the files were bad since the start."""
    pid: int
    endpoints: tuple[EndpointReport, ...]
    held: Mapping[str, int] = Field(default_factory=dict)
    """Requests that wait for the successor of what is being replaced, by the name that they ask for."""
    queued: Mapping[str, int] = Field(default_factory=dict)
    """Requests that wait until an endpoint has a place for them, by the name that they ask for."""


class BreakerChange(Reported):
    """One change of a breaker."""

    age_s: float
    """Seconds ago."""
    state: BreakerState
    """What it became."""
    cause: str


class BreakerReport(Reported):
    """The circuit breaker of one endpoint."""

    state: BreakerState
    failures: int = 0
    """In a row, while it is closed."""
    streak: int = 0
    """How often it opened in a row without staying closed in between."""
    retry_s: float | None = None
    """Seconds until it lets a trial through; None while it is closed, and where only a hand closes it."""
    cause: str | None = None
    """Why it is what it is; None while it never changed."""
    history: tuple[BreakerChange, ...] = ()
    """The last changes, oldest first."""


class Spread(Reported):
    """How long something took, over the last answers to clients, in seconds."""

    p50: float
    p95: float


class EndpointStatistics(Reported):
    """What is known of one endpoint: one place that can be called, in whatever roles it stands."""

    endpoint: str
    """Its name in the first role that has it."""
    role: str
    """That role; empty for what no role names."""
    instance: str
    """Its host and port, which tell replicas of one name apart."""
    roles: tuple[str, ...]
    """Everything that leads to it, as `role/endpoint`."""
    model: str
    health: Health
    breaker: BreakerReport
    in_flight: int
    answers: int
    """To clients, since it is known."""
    failures: int
    latency_s: Spread | None = None
    """Whole answers."""
    first_content_s: Spread | None = None
    """Up to the first content of streams."""
    tokens_per_s: float | None = None
    """Of one answer, on average over the last ones; None where it does not say how many tokens it gave."""
    last_success_age_s: float | None = None
    """Since its last token, vector or score, those of probes included."""
    last_error: str | None = None
    last_error_age_s: float | None = None
    probe: ProbeReport | None = None
    """The last time that the gateway itself asked it."""
    failed_checks: int = 0
    """Probes in a row that failed while its breaker was closed: from the first one on it is asked as a last resort."""


class EndpointsReport(Reported):
    """The answer of `/admin/endpoints` and of what changes them by hand."""

    version: Literal[1] = 1
    stack: str
    pid: int
    endpoints: tuple[EndpointStatistics, ...]


class EndpointChoice(Frozen):
    """Which endpoint is meant by a request that isolates, closes or probes one."""

    endpoint: str
    role: str | None = None
    """Where several roles have an endpoint of that name."""
    instance: str | None = None
    """Host and port of one of several replicas; without it all of them are meant."""


class EndpointBreak(EndpointChoice):
    """Which endpoint is to fail for a while, for a drill."""

    seconds: Annotated[float, Field(gt=0, le=3600)]
