"""Pure: what the gateway tells about itself at `GET /admin/config`; read by `orchestrate plan` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from schemas.base import Frozen
from schemas.problems import Problem


class EndpointReport(Frozen):
    """One endpoint as the gateway sees it now."""

    name: str
    role: str
    url: str
    model: str
    state: Literal["ready", "not running", "draining", "open", "half-open"]
    """`open` and `half-open` are the breaker's."""
    in_flight: int
    last_error: str | None = None


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
