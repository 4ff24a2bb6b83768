"""Pure: the routing table: an immutable answer to "who serves this name". A request keeps the one it started with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from schemas.model import ModelKind
from schemas.policy import Breaker, Timeouts
from schemas.routes import Instance

MIB = 1024 * 1024


class EndpointIdentity(NamedTuple):
    """What makes an endpoint the same one across reloads: state is kept by it."""

    scheme: str
    host: str
    port: int
    base_path: str
    engine: str
    model: str

    @property
    def url(self) -> str:
        """Return the base URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base_path}"


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint that can be called."""

    name: str
    role: str
    """The role that it was declared in; empty for a service or helper that no role names."""
    identity: EndpointIdentity
    weight: int
    token: str | None = field(repr=False)
    """Bearer token, sent to this endpoint only."""
    breaker: Breaker
    timeouts: Timeouts
    max_in_flight: int | None
    """Requests at once; None for any number."""
    upstream_model: str
    """The name that the endpoint knows its model by."""
    priority: int = 1
    """The tier that it was declared in."""
    kind: ModelKind = "chat"
    """What its model does, as far as the files say."""
    check_s: float | None = None
    """Seconds without a sign of life after which it is asked for a token; None while nobody asked for that."""
    is_strict: bool = False
    """Whether it takes only requests that were checked for its engine, or freed of parameters."""
    drop_params: tuple[str, ...] = ()
    """Parameters of requests that are left out for it."""
    max_batch: int | None = None
    """Texts or documents that it takes in one request; None for any number."""
    is_on_demand: bool = False
    """Whether its model is brought into memory by requests."""
    rpm: int | None = None
    """Requests in any minute; None for any number."""
    hedge_s: float | Literal["p95"] | None = None
    """When another endpoint is asked as well for vectors or scores: seconds, or the measured 95th percentile."""
    idle_stop_s: float | None = None
    """Seconds without a request after which its model is dropped again, as far as the files say."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An endpoint that is declared and cannot be called now."""

    name: str
    role: str
    reason: Literal["not running", "draining", "replacing", "misconfigured", "cannot rerank"]
    model: str
    url: str = ""
    detail: str = ""
    priority: int = 1
    held_until: float = math.inf
    """Of what is being replaced: when its successor should be there, by the clock of the event loop. Requests do not
    wait for it any longer: nobody may be working on it any more."""


Place = Target | Missing


@dataclass(frozen=True, slots=True)
class Route:
    """A name as it can be served now."""

    name: str
    tiers: tuple[tuple[Target, ...], ...]
    """Endpoints in the order in which they are tried: all of a tier before any of the next."""
    missing: tuple[Missing, ...]
    attempts: int
    total_s: float
    fallback: Route | None = None
    """Who is asked when none of these can answer."""
    context: Route | None = None
    """Who is asked when a prompt is longer than what these can read."""
    is_alias: bool = False
    """Whether it is an ordered preference: endpoints whose model is not in memory come after all the others."""
    is_strict: bool = False
    """Whether an endpoint here is strict."""
    kind: ModelKind = "chat"
    """What may be asked of it."""
    dimensions: int | None = None
    """The length that vectors must have, where the files pin it."""
    queue: int = 64
    """How many requests wait while every endpoint here is busy."""
    queue_s: float = 30.0
    """How long they wait."""
    has_replicas: bool = False
    """Whether endpoints of one tier share the requests, so that it matters who has read a prompt's beginning."""
    may_restart: bool = False
    """Whether another endpoint gives an answer anew that broke off in the middle."""
    may_continue: bool = False
    """Whether another endpoint goes on with it, where that is possible."""
    is_skipped: bool = False
    """Whether a request that nobody can answer is answered undone."""

    def rungs(self) -> Iterator[Route]:
        """Yield this route, its fallback, that one's fallback, and so on."""
        rung: Route | None = self
        while rung is not None:
            yield rung
            rung = rung.fallback

    def targets(self) -> Iterator[Target]:
        """Yield the endpoints that can be called, without those of fallbacks."""
        return (target for tier in self.tiers for target in tier)


@dataclass(frozen=True, slots=True)
class Card:
    """One line of `/v1/models`."""

    id: str
    owner: str
    kind: Literal["role", "alias", "model"]
    task: ModelKind = "chat"


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Everything that a request needs to know of the configuration. A request keeps the table it started with."""

    stack: str
    generation: int
    revision: str | None
    routes: Mapping[str, Route]
    """By every name that clients may send as `model`."""
    roles: tuple[str, ...]
    cards: tuple[Card, ...]
    body_limit: int
    """The largest request body, in bytes."""
    digest: str
    fields: Mapping[str, str]

    def targets(self) -> Iterator[Target]:
        """Yield every endpoint that can be called, once for each name it appears under; those of roles come first."""
        names = dict.fromkeys((*self.roles, *self.routes))
        return (target for name in names for target in self.routes[name].targets())


def identity_of(instance: Instance) -> EndpointIdentity:
    """Return the identity of a running copy of a service."""
    return identity_at(instance.url, instance.engine, instance.model)


def identity_at(url: str, engine: str, model: str) -> EndpointIdentity:
    """Return the identity of an endpoint; its URL may or may not end in `/v1`, which only Infinity's paths lack."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = parts.path.rstrip("/")
    path = path if engine == "infinity" else path.removesuffix("/v1")
    return EndpointIdentity(parts.scheme, parts.hostname or "", port, path, engine, model)
