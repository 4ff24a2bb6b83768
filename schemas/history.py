"""Pure: what the gateway tells of requests and errors of the past, at `/requests` and `/errors`."""

from __future__ import annotations

from typing import Literal

from schemas.base import Reported


class PastRequest(Reported):
    """One request that is over. It holds nothing of what was asked or answered."""

    id: str
    """That of the answer's header `x-orchestrate-request-id`."""
    at: float
    """When it came, in seconds since 1970."""
    role: str
    """The role, alias, service or model that answered."""
    model: str
    """What the client asked for."""
    path: str
    is_stream: bool
    endpoint: str
    """Who answered, or was asked last; empty where nobody was."""
    attempts: tuple[str, ...]
    """The endpoints that were asked, in their order."""
    fallback: str = ""
    """The service or role that answered in place of the one that was wanted."""
    outcome: str
    status: int | None = None
    """The HTTP status of the answer; None where the client left before there was one."""
    tokens: int | None = None
    """How many were generated, as the endpoint says; None where it does not."""
    first_s: float | None = None
    """Seconds to the first content of a stream."""
    took_s: float
    tokens_per_s: float | None = None
    """From the first content to the last, of streams."""


class PastRequests(Reported):
    """The latest ones, newest first."""

    version: Literal[1] = 1
    requests: tuple[PastRequest, ...]


class PastError(Reported):
    """One attempt that failed, or a request that nobody could be asked for."""

    request: str
    """The id of the request."""
    at: float
    role: str
    endpoint: str
    outcome: str
    error: str
    status: int | None = None
    """What the client got in the end: 200 where another endpoint took over."""


class ErrorGroup(Reported):
    """Errors that are alike."""

    endpoint: str
    outcome: str
    count: int
    last_at: float


class PastErrors(Reported):
    """The latest ones, newest first, and how many are alike among all that are kept."""

    version: Literal[1] = 1
    errors: tuple[PastError, ...]
    groups: tuple[ErrorGroup, ...]
