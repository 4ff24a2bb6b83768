"""Pure: what the gateway tells of requests that are over, at `/admin/receipts`; shown by `orchestrate receipts`."""

from __future__ import annotations

from typing import Literal

from schemas.base import Reported


class PassedOver(Reported):
    """An endpoint that was not asked."""

    endpoint: str
    reason: str
    """Such as `open`, `full`, `not running`."""
    detail: str = ""
    retry_s: float | None = None
    """Seconds after which it might have been available; None when nobody knew."""


class AttemptReceipt(Reported):
    """One endpoint that was asked."""

    endpoint: str
    began_s: float
    """Seconds after the request had come, like all times here."""
    first_s: float | None
    """When its first content came; None where none came, and for answers that come as a whole."""
    ended_s: float
    outcome: str
    error: str | None = None
    emulated: tuple[str, ...] = ()
    """Parameters that the gateway saw to, because the endpoint cannot."""
    dropped: tuple[str, ...] = ()
    """Parameters that were left out, because the files say so for the endpoint."""
    url: str = ""
    """Where it is: an endpoint that is a service may have several replicas. Empty from an older gateway."""


class Receipt(Reported):
    """How one request was routed. It holds nothing of what was asked or answered."""

    version: Literal[1] = 1
    id: str
    """That of the answer's header `x-orchestrate-request-id`."""
    at: float
    """When it came, seconds since the epoch."""
    model: str
    """What the client asked for."""
    route: str
    """The role, alias, service or model that this is."""
    path: str
    is_stream: bool
    endpoint: str
    """Who answered, or was asked last; empty where nobody was."""
    fallback: str
    """The service or role that answered in place of the one that was wanted; empty without one."""
    outcome: str
    took_s: float
    attempts: tuple[AttemptReceipt, ...]
    passed_over: tuple[PassedOver, ...]
    """Those that were not asked when the last choice was made."""
    generation: int
    """Of the routes in use."""
    revision: str | None
    """Git revision of the configuration in use."""


class Receipts(Reported):
    """The latest ones, newest first."""

    version: Literal[1] = 1
    receipts: tuple[Receipt, ...]
