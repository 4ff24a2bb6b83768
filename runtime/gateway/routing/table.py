"""Pure: the routing table, an immutable answer to "who serves this name", built from a stack and `routes.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from schemas.base import Frozen, HelperName, RoleName, ServiceName
from schemas.hashing import routing_digest, routing_fields
from schemas.policy import Breaker, Limits, Policy, Timeouts
from schemas.routes import Instance, Routes
from schemas.stack import HelperEndpoint, Role, ServiceEndpoint, Stack

MIB = 1024 * 1024
WORKER_ENGINE = "mlx"
OWNER = "orchestrate"
"""Whom `/v1/models` names as the owner of roles, aliases and our own models."""


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


@dataclass(frozen=True, slots=True)
class Missing:
    """An endpoint that is declared and cannot be called now."""

    name: str
    role: str
    reason: Literal["not running", "draining", "replacing", "misconfigured"]
    model: str
    url: str = ""
    detail: str = ""


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


@dataclass(frozen=True, slots=True)
class Card:
    """One line of `/v1/models`."""

    id: str
    owner: str
    kind: Literal["role", "alias", "model"]


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
        """Yield every endpoint that can be called, once for each name and role it appears under."""
        return (target for route in self.routes.values() for tier in route.tiers for target in tier)


@dataclass(frozen=True, slots=True)
class _Settings:
    breaker: Breaker = field(default_factory=Breaker)
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)

    def with_first_token(self, timeout_s: float | None) -> _Settings:
        """Return these settings with another time to the first content, where one is given."""
        if timeout_s is None:
            return self
        return replace(self, timeouts=self.timeouts.model_copy(update={"first_token_s": timeout_s}))


@dataclass(frozen=True, slots=True)
class _Slot:
    """What a declared endpoint says apart from who fills it."""

    name: str
    role: str
    settings: _Settings
    weight: int = 1


AnyEndpoint = ServiceEndpoint | HelperEndpoint
Part = TypeVar("Part", bound=Frozen)


def build_table(
    stack: Stack, routes: Routes | None, *, environ: Mapping[str, str], worker_token: str | None
) -> RoutingTable:
    """Build the table of a validated stack.

    Without `routes` no service runs. `environ` holds the helpers' keys; a key that is not set makes its endpoints
    misconfigured, not the table bad. `worker_token` goes to our own workers only.
    """
    return _Builder(stack, routes, environ, worker_token).table()


class _Builder:
    """Holds the inputs while the table is put together."""

    def __init__(
        self, stack: Stack, routes: Routes | None, environ: Mapping[str, str], worker_token: str | None
    ) -> None:
        self._stack = stack
        self._published = routes
        self._environ = environ
        self._worker_token = worker_token
        self._settings = {name: self._resolve(role) for name, role in stack.roles.items()}

    def table(self) -> RoutingTable:
        """Name everything that clients may ask for. A role hides an alias, an alias a service, and so on."""
        roles: dict[str, Route] = {name: self._role(name, role) for name, role in self._stack.roles.items()}
        services: dict[str, Route] = {name: self._service(name) for name in self._stack.services}
        models = {name: self._model(name, roles) for name in self._model_names()}
        endpoints = self._endpoints()
        named = {**models, **endpoints, **services, **roles}
        aliases: dict[str, Route] = {
            alias: self._alias(alias, names, named) for alias, names in self._stack.aliases.items()
        }
        return RoutingTable(
            stack=self._stack.stack,
            generation=self._published.generation if self._published else 0,
            revision=self._published.revision if self._published else None,
            routes={**models, **endpoints, **services, **aliases, **roles},
            roles=tuple(roles),
            cards=self._cards(),
            body_limit=int(self._stack.gateway.body_limit_mib * MIB),
            digest=routing_digest(self._stack),
            fields=routing_fields(self._stack),
        )

    def _resolve(self, role: Role) -> _Settings:
        policy = self._stack.policies[role.policy] if role.policy else Policy()
        settings = _Settings(
            _over(policy.breaker, role.breaker),
            _over(policy.timeouts, role.timeouts),
            _over(policy.limits, role.limits),
        )
        return settings.with_first_token(role.timeout_s)

    def _role(self, name: RoleName, role: Role) -> Route:
        tiers: dict[int, list[Place]] = {}
        for endpoint_name, endpoint in role.endpoints.items():
            tiers.setdefault(endpoint.priority, []).extend(self._places(endpoint_name, name, endpoint))
        return _route(name, (tiers[priority] for priority in sorted(tiers)), self._settings[name])

    def _endpoints(self) -> dict[str, Route]:
        """Return a route for every endpoint; of two with one name the role that comes first wins."""
        routes: dict[str, Route] = {}
        for role_name, role in self._stack.roles.items():
            for name, endpoint in role.endpoints.items():
                places = self._places(name, role_name, endpoint)
                routes.setdefault(name, _route(name, [places], self._settings[role_name]))
        return routes

    def _places(self, name: str, role: RoleName, endpoint: AnyEndpoint) -> list[Place]:
        settings = self._settings[role].with_first_token(endpoint.timeout_s)
        slot = _Slot(name, role, settings, endpoint.weight)
        if isinstance(endpoint, ServiceEndpoint):
            return self._instances(slot, endpoint.service)
        return [self._helper(slot, endpoint.helper, endpoint.model)]

    def _instances(self, slot: _Slot, service: ServiceName) -> list[Place]:
        published = self._published.instances if self._published else ()
        instances = [instance for instance in published if instance.service == service]
        if not instances:
            return [Missing(slot.name, slot.role, "not running", self._stack.services[service].model)]
        return [self._instance(slot, instance) for instance in instances]

    def _instance(self, slot: _Slot, instance: Instance) -> Place:
        if instance.state != "ready":
            return Missing(slot.name, slot.role, instance.state, instance.model, instance.url)
        return _target(slot, identity_of(instance), self._worker_token)

    def _helper(self, slot: _Slot, helper: HelperName, model: str) -> Place:
        declared = self._stack.helpers[helper]
        token = None
        if declared.key is not None:
            try:
                token = declared.key.reveal(self._environ).strip()
            except KeyError as error:
                detail = f"helpers.{helper}.key: the environment variable {error.args[0]} is not set"
                return Missing(slot.name, slot.role, "misconfigured", model, declared.url, detail)
            if not token.isascii() or not token.isprintable():
                detail = f"helpers.{helper}.key: only printable ASCII characters can be sent in a header"
                return Missing(slot.name, slot.role, "misconfigured", model, declared.url, detail)
        return _target(slot, _identity(declared.url, declared.api, model), token)

    def _service(self, service: ServiceName) -> Route:
        settings = self._settings_for(
            lambda endpoint: isinstance(endpoint, ServiceEndpoint) and endpoint.service == service
        )
        return _route(service, [self._instances(_Slot(service, "", settings), service)], settings)

    def _model(self, model: str, roles: Mapping[str, Route]) -> Route:
        """Return who serves a model: the roles' endpoints in their order, then services and helpers without a role."""
        placed: list[list[Place]] = []
        for route in roles.values():
            placed.extend([target for target in tier if target.identity.model == model] for tier in route.tiers)
            placed.append([missing for missing in route.missing if missing.model == model])
        in_roles = self._in_roles()
        settings = self._settings_for(lambda endpoint: self._serves(endpoint, model))
        for service, declared in self._stack.services.items():
            if declared.model == model and service not in in_roles:
                placed.append(self._instances(_Slot(service, "", settings), service))
        for helper, offered in self._stack.helpers.items():
            if model in offered.models and (helper, model) not in in_roles:
                placed.append([self._helper(_Slot(helper, "", settings), helper, model)])
        return _route(model, placed, settings)

    def _in_roles(self) -> set[ServiceName | tuple[HelperName, str]]:
        """Return the services and the (helper, model) pairs that some role names."""
        endpoints = [endpoint for role in self._stack.roles.values() for endpoint in role.endpoints.values()]
        return {
            endpoint.service if isinstance(endpoint, ServiceEndpoint) else (endpoint.helper, endpoint.model)
            for endpoint in endpoints
        }

    def _serves(self, endpoint: AnyEndpoint, model: str) -> bool:
        if isinstance(endpoint, ServiceEndpoint):
            return self._stack.services[endpoint.service].model == model
        return endpoint.model == model

    def _settings_for(self, concerns: Callable[[AnyEndpoint], bool]) -> _Settings:
        """Return the settings of the first role with such an endpoint, else the defaults."""
        for name, role in self._stack.roles.items():
            if any(concerns(endpoint) for endpoint in role.endpoints.values()):
                return self._settings[name]
        return _Settings()

    def _alias(self, alias: str, names: tuple[str, ...], named: Mapping[str, Route]) -> Route:
        found = [named[name] for name in names if name in named]
        tiers: list[list[Place]] = []
        for route in found:
            tiers.extend(list[Place](tier) for tier in route.tiers)
            tiers.append(list(route.missing))
        attempts = max((route.attempts for route in found), default=Limits().attempts)
        total_s = max((route.total_s for route in found), default=Timeouts().total_s)
        return _route(alias, tiers, _Settings(timeouts=Timeouts(total_s=total_s), limits=Limits(attempts=attempts)))

    def _model_names(self) -> list[str]:
        offered = (model for helper in self._stack.helpers.values() for model in helper.models)
        return list(dict.fromkeys([*(service.model for service in self._stack.services.values()), *offered]))

    def _cards(self) -> tuple[Card, ...]:
        owners: dict[str, str] = {
            model: name for name, helper in self._stack.helpers.items() for model in helper.models
        }
        owners.update((service.model, OWNER) for service in self._stack.services.values())
        cards = [
            *(Card(role, OWNER, "role") for role in self._stack.roles),
            *(Card(alias, OWNER, "alias") for alias in self._stack.aliases),
            *(Card(model, owners[model], "model") for model in self._model_names()),
        ]
        return tuple({card.id: card for card in reversed(cards)}.values())[::-1]


def _over(base: Part, own: Part | None) -> Part:
    """Return the base with the fields that the other one names."""
    if own is None:
        return base
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def identity_of(instance: Instance) -> EndpointIdentity:
    """Return the identity of a running copy of a service."""
    return _identity(instance.url, WORKER_ENGINE, instance.model)


def _identity(url: str, engine: str, model: str) -> EndpointIdentity:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = parts.path.rstrip("/").removesuffix("/v1")
    return EndpointIdentity(parts.scheme, parts.hostname or "", port, path, engine, model)


def _target(slot: _Slot, identity: EndpointIdentity, token: str | None) -> Target:
    settings = slot.settings
    return Target(
        name=slot.name,
        role=slot.role,
        identity=identity,
        weight=slot.weight,
        token=token,
        breaker=settings.breaker,
        timeouts=settings.timeouts,
        max_in_flight=settings.limits.max_in_flight,
    )


def _route(name: str, tiers: Iterable[Iterable[Place]], settings: _Settings) -> Route:
    """Sort places into what can be called, each endpoint once, and what cannot."""
    seen: set[EndpointIdentity] = set()
    missing: dict[tuple[str, str], Missing] = {}
    callable_tiers: list[tuple[Target, ...]] = []
    for tier in tiers:
        fresh: list[Target] = []
        for place in tier:
            if isinstance(place, Missing):
                missing.setdefault((place.name, place.url), place)
            elif place.identity not in seen:
                seen.add(place.identity)
                fresh.append(place)
        if fresh:
            callable_tiers.append(tuple(fresh))
    limits, total_s = settings.limits, settings.timeouts.total_s
    return Route(name, tuple(callable_tiers), tuple(missing.values()), limits.attempts, total_s)
