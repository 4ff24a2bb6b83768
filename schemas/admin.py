"""Pure: what the gateway tells about itself at `GET /admin/config`; read by `orchestrate plan` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from schemas.base import Frozen
from schemas.problems import Problem


class ProbeReport(Frozen):
    """What came of asking an endpoint for one token."""

    age_s: float
    """Seconds ago."""
    outcome: str
    """`ok`, or a few words on what went wrong."""


class EndpointReport(Frozen):
    """One endpoint as the gateway sees it now."""

    name: str
    role: str
    url: str
    model: str
    state: Literal["ready", "cold", "loading", "not running", "draining", "replacing", "open", "half-open", "wedged"]
    """`cold`: a request brings its model into memory. `open` and `half-open` are the breaker's; `wedged` is open, and
    it takes requests without ever giving a token."""
    in_flight: int
    last_error: str | None = None
    priority: int | None = None
    """Its tier in the role, lower ones first; None for what the role falls back to."""
    is_serving: bool = False
    """Whether it is on the rung that would answer a request of this role now."""
    probe: ProbeReport | None = None
    """The last time that the gateway itself asked it for a token."""


class ConfigReport(Frozen):
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
